"""The inputs of every side: models of real sizes with random weights, and the same rows.

Nothing is downloaded. Weights, pixels and token ids come from fixed seeds; target lengths are
distributed as in real captions.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.files import load_config
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.clip.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from afspl_jax.models.huggingface.weights import outline, save_backbone
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.t5 import T5

# Sizes of openai/clip-vit-base-patch32, google/flan-t5-small and google/flan-t5-base. "toy" is for
# tests, which compare numbers and not times.
CLIPS = {
  "B/32": ClipConfig(
    vision=ClipVisionConfig(
      width=768, layers=12, heads=12, mlp_width=3072, image_size=224, patch_size=32
    ),
    text=ClipTextConfig(width=512, layers=12, heads=8, mlp_width=2048, vocab_size=49408),
    joint_width=512,
  ),
  "toy": ClipConfig(
    vision=ClipVisionConfig(width=24, layers=2, heads=2, mlp_width=48, image_size=32, patch_size=8),
    text=ClipTextConfig(width=16, layers=1, heads=2, mlp_width=32, vocab_size=64, eos_id=63),
    joint_width=12,
  ),
}
_FLAN = {"activation": "gelu_new", "gated": True, "tied_head": False, "scaled_head": False}
T5S = {
  "small": T5Config(
    vocab_size=32128,
    width=512,
    head_width=64,
    mlp_width=1024,
    encoder_layers=8,
    decoder_layers=8,
    heads=6,
    **_FLAN,
  ),
  "base": T5Config(
    vocab_size=32128,
    width=768,
    head_width=64,
    mlp_width=2048,
    encoder_layers=12,
    decoder_layers=12,
    heads=12,
    **_FLAN,
  ),
  "toy": T5Config(
    vocab_size=96,
    width=32,
    head_width=8,
    mlp_width=48,
    encoder_layers=2,
    decoder_layers=2,
    heads=4,
    **_FLAN,
  ),
}

# Per mille of the 25,014 captions of COCO's 2017 validation set that have 9, 10, ... 32 tokens of
# Flan-T5, with the end-of-text token; longer ones are cut to 32. Their mean is 14.6.
_LENGTHS = (8, 41, 94, 130, 149, 141, 120, 96, 68, 48, 33, 21, 16, 10, 7, 5, 4, 2, 2, 2, 1, 1, 1, 2)
_SHORTEST = 9
INSTRUCTION = 6  # tokens of "Describe the image."


@dataclass(frozen=True)
class Case:
  """Models, prompter and optimizer; the defaults are those of configs/coco.py."""

  t5: str = "small"
  clip: str = "B/32"
  images: int = 64  # distinct images; several rows use one image
  dtype: str = "float32"  # of the backbones' weights and computation, in all sides

  @property
  def config(self) -> Experiment:
    """The config of the measured experiment."""
    config = _coco()
    backbone = dataclasses.replace(config.backbone, dtype=self.dtype)
    prompter = dataclasses.replace(config.prompter, init="random")
    optim = dataclasses.replace(config.optim, schedule="constant", warmup_rounds=0.0)
    return dataclasses.replace(config, backbone=backbone, prompter=prompter, optim=optim)

  @property
  def visual_tokens(self) -> int:
    """Number of vectors that T5 reads for an image."""
    side = CLIPS[self.clip].vision.image_size // CLIPS[self.clip].vision.patch_size
    return (side // self.config.prompter.patch_pool) ** 2

  def pixels(self) -> Float[np.ndarray, "images h x 3"]:
    """Returns the images, as a checkpoint's processor would."""
    size = CLIPS[self.clip].vision.image_size
    rng = np.random.default_rng(1)
    return rng.normal(size=(self.images, size, size, 3)).astype(np.float32)


class Rows(NamedTuple):
  """Examples of `k` local steps of `c` clients, in batches of `b`."""

  image: Int[np.ndarray, "k c b"]  # index into the case's images
  text: Float[np.ndarray, "k c b f"]  # CLIP's feature of the instruction
  instruction: Int[np.ndarray, "k c b l"]
  instruction_mask: Bool[np.ndarray, "k c b l"]
  targets: Int[np.ndarray, "k c b t"]  # padded with 0 to 32
  targets_mask: Bool[np.ndarray, "k c b t"]
  personal: Bool[np.ndarray, "k c b"]  # rows that may use the local prompt


def rows(case: Case, steps: int, clients: int, batch: int, seed: int = 0) -> Rows:
  """Makes rows from a seed: the same for every side."""
  rng = np.random.default_rng((seed, steps, clients, batch))
  shape = (steps, clients, batch)
  longest = case.config.data.target_length
  share = np.array(_LENGTHS) / sum(_LENGTHS)
  lengths = rng.choice(np.arange(_SHORTEST, _SHORTEST + len(share)), p=share, size=shape)
  mask = np.arange(longest) < lengths[..., None]
  vocabulary = T5S[case.t5].vocab_size
  targets = rng.integers(2, vocabulary, size=(*shape, longest))
  targets = np.where(np.arange(longest) == lengths[..., None] - 1, T5Config.eos_id, targets) * mask
  instruction = rng.integers(2, vocabulary, size=INSTRUCTION)
  text = rng.normal(size=CLIPS[case.clip].joint_width)
  return Rows(
    image=rng.integers(case.images, size=shape),
    text=np.broadcast_to(text, (*shape, len(text))).astype(np.float32),
    instruction=np.broadcast_to(instruction, (*shape, INSTRUCTION)).astype(np.int32),
    instruction_mask=np.ones((*shape, INSTRUCTION), bool),
    targets=targets.astype(np.int32),
    targets_mask=mask,
    personal=rng.random(shape) < 0.5,
  )


def write_backbones(case: Case, folder: Path) -> dict[str, Path]:
  """Writes the checkpoints of "clip" and "t5" in Hugging Face format, unless they exist."""
  wanted = {
    "clip": (Clip, CLIPS[case.clip], f"clip-{case.clip.replace('/', '')}"),
    "t5": (T5, T5S[case.t5], f"t5-{case.t5}"),
  }
  out = {}
  for kind, (model, config, name) in wanted.items():
    out[kind] = folder / name
    if not (out[kind] / "config.json").is_file():  # save writes it after the weights
      save_backbone(_random(model, config), out[kind])
  return out


def _random(model: type, config: Any) -> nnx.Module:
  """Makes a model whose activations and logits are as large as in trained models."""
  rng = np.random.default_rng(0)
  graph, state = nnx.split(outline(model, config))

  def draw(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if len(leaf.shape) < 2:
      values = np.full(leaf.shape, float("norm" in name and "scale" in name), np.float32)
    else:
      std = float(np.prod(leaf.shape[:-1])) ** -0.5
      if name.endswith("embedding/value"):
        std = 1.0
      elif model is T5 and "query" in name:
        std *= config.head_width**-0.5  # T5 does not scale the scores
      values = rng.standard_normal(leaf.shape, np.float32) * np.float32(std)
    return jax.numpy.asarray(values, leaf.dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


@functools.cache
def _coco() -> Experiment:
  return load_config(Path(__file__).parents[1] / "configs" / "coco.py", "get_config", Experiment)
