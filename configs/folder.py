"""Your own folder of images and captions.jsonl (docs/data.md), with a client for each site.

    python launch.py --config=folder.py --config.data.dir=DIR --config.data.num_clients=5

`afspl prepare DIR` looks the folder through first. The shipped tiny backbones have seen nothing but
drawn shapes, so this shows that a run works. For captions of use, give CLIP and Flan-T5 as
configs/coco.py does.
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim


def get_config() -> Experiment:
  return Experiment(
    data=Data(
      source="folder",
      dir="data",
      partition="natural",
      num_clients=5,
      # The tiny T5 spells unknown words: 99 % of photos' captions fit. With Flan-T5's tokenizer 32
      # holds 99 % of them, and 208 of IU X-Ray's reports.
      instruction_length=64,
      target_length=96,
      caption_instruction="describe the picture .",
    ),
    optim=Optim(local_steps=16, warmup_rounds=1.0),
    fed=Fed(rounds=10, clients_per_round=5, cohort=5),
    eval=Eval(every=5, val_examples=0, max_tokens=96),
  )
