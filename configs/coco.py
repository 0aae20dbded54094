"""COCO captions over 10 Dirichlet clients, CLIP ViT-B/32 and Flan-T5-base, all local devices."""

from afspl_jax.config import Backbone, Data, Eval, Experiment, Fed, Optim, Prompter


def get_config() -> Experiment:
  return Experiment(
    data=Data(
      source="coco_captions",
      partition="dirichlet",
      dirichlet_alpha=0.5,
      num_clients=10,
      instruction_length=16,
      target_length=32,
      caption_instruction="Describe the image.",
    ),
    backbone=Backbone(
      clip="openai/clip-vit-base-patch32", t5="google/flan-t5-base", dtype="bfloat16"
    ),
    prompter=Prompter(
      init="text",
      init_text="a short description of the picture",
      patch_pool=1,  # ViT-B/32 has 7 x 7 patches, few enough
      key_dim=128,
      fusion_hidden=256,
    ),
    optim=Optim(
      batch_size=64,
      local_steps=50,
      warmup_rounds=1.0,
      prompt_lr=1e-2,
      local_lr=1e-2,
      key_lr=1e-3,
      fusion_lr=1e-3,
      mapper_lr=1e-3,
      target_cuts=(0.3, 0.4, 0.5, 0.6, 0.75),  # captions have 15 tokens on average
    ),
    fed=Fed(rounds=50, clients_per_round=10),
    eval=Eval(every=10, val_examples=1000, batch_size=64, max_tokens=30),
  )
