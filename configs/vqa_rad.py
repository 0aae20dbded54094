"""Questions about radiology images at three sites, one per organ, with the tiny backbones.

The tiny pair has seen neither radiology nor these words, so this shows that a run works. For
answers of use, set data.dir and give CLIP and Flan-T5 as configs/coco.py does.
"""

from afspl_jax.config import Data, Eval, Experiment, Fed, Optim


def get_config() -> Experiment:
  return Experiment(
    data=Data(
      source="vqa_rad",
      dir="vqa_rad",  # trainset.json, testset.json, images/
      partition="natural",
      num_clients=3,
      # The tiny T5 spells unknown words: 99 % of questions and answers fit. With Flan-T5's
      # tokenizer 32 and 20 hold 99 %.
      instruction_length=64,
      target_length=48,
    ),
    optim=Optim(local_steps=16, warmup_rounds=1.0),
    fed=Fed(rounds=10, clients_per_round=3),
    eval=Eval(every=5, val_examples=0, max_tokens=48),
  )
