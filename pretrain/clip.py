"""Pretrains the tiny CLIP on generic scenes, looks and styles that no site has.

The loss is contrastive (Radford et al. 2021) plus that of a per-patch attribute head, which is then
discarded: with the contrastive loss alone, the patch tokens of so small a model hardly encode
shape.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from afspl_jax.data.shapes import language
from afspl_jax.data.shapes.scene import (
  COLOURS,
  SHAPES,
  SIZE,
  Look,
  Scene,
  cells_of,
  render,
  sample_look,
)
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.clip.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from pretrain.corpus import pretraining_scene
from pretrain.prefetch import prefetch
from pretrain.tokenizers import save_clip_tokenizer

IMAGES = 24_000
BATCH = 128
PEAK_LR = 1.5e-3
LENGTH = 52  # tokens of a caption
PATCH = 8  # pixels
GRID = SIZE // PATCH
COMPLEMENTS = ("cyanish", "pinkish", "yellowish")
LOOK_WORDS = ("dark", "light", "reddish", "greenish", "bluish", *COMPLEMENTS, "smooth", "grainy")
KEPT = 40  # of 64 patches, in the first three quarters of the steps (FLIP, Li et al. 2023)
# OpenAI's values, so that the defaults of the processor are right for the tiny CLIP too.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROCESSOR = {
  "image_processor_type": "CLIPImageProcessor",
  "do_resize": True,
  "size": {"shortest_edge": SIZE},
  "resample": 3,
  "do_center_crop": True,
  "crop_size": {"height": SIZE, "width": SIZE},
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": MEAN,
  "image_std": STD,
  "do_convert_rgb": True,
}


class ImageBatch(NamedTuple):
  """Images with captions, and the attributes of each patch (-1: background)."""

  pixels: Float[Array, "b h w 3"]
  ids: Int[Array, "b l"]
  mask: Bool[Array, "b l"]
  keep: Int[Array, "b k"]
  attributes: Int[Array, "b k 3"]  # colour, shape, size


def pretrain(folder: Path, steps: int, seed: int) -> float:
  """Trains, writes a Hugging Face checkpoint folder, and returns the last contrastive loss."""
  save_clip_tokenizer(folder, (*LOOK_WORDS, "image"))
  (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")
  tokenizer = Tokenizer(folder)
  config = ClipConfig(
    vision=ClipVisionConfig(128, 4, 4, 256, SIZE, PATCH),
    text=ClipTextConfig(
      128,
      2,
      4,
      256,
      vocab_size=tokenizer.vocab_size,
      max_length=77,
      bos_id=int(tokenizer.tokenize(["a"], 3)[0][0, 0]),
      eos_id=tokenizer.eos_id,
      pad_id=tokenizer.eos_id,
    ),
    joint_width=128,
  )
  graph, params = nnx.split((Clip(config, rngs=nnx.Rngs(seed)), _head(nnx.Rngs(seed + 1))))
  learning_rate = optax.warmup_cosine_decay_schedule(
    0.0, PEAK_LR, min(100, steps // 2), steps, 0.02 * PEAK_LR
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=0.01)
  )
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, batch: ImageBatch):
    def loss_fn(params):
      clip, head = nnx.merge(graph, params)
      tokens, image = clip.encode_image(batch.pixels, batch.keep)
      contrast = _contrast(image, clip.encode_text(batch.ids, batch.mask), clip.logit_scale[...])
      return contrast + 0.5 * _attribute_loss(head(tokens[:, 1:]), batch.attributes), contrast

    (_, contrast), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, contrast

  world = _World(seed, tokenizer, 3 * steps // 4)
  bar = tqdm(prefetch(world.batch, steps), total=steps, desc="CLIP on images", unit="step")
  recent: list[float] = []
  for i, batch in enumerate(bar):
    params, opt_state, contrast = step(params, opt_state, batch)
    recent = [*recent[-99:], float(contrast)]
    if i % 50 == 49:
      bar.set_postfix(contrast=f"{np.mean(recent):.3f}", refresh=False)
  weights.save_backbone(nnx.merge(graph, params)[0], folder)
  return float(np.mean(recent))


def describe_look(look: Look, rng: np.random.Generator) -> str:
  """Returns a text such as `a dark bluish grainy image :`, or "" if the look is average.

  CLIP learns to recognise a camera's look only if texts mention it. A prompter that chooses by
  image features can then adapt to the site of an image.
  """
  if rng.random() < 0.4:
    return ""
  words = []
  if not 105 < look.grey < 145:
    words.append("dark" if look.grey < 125 else "light")
  tint = np.asarray(look.tint) - np.mean(look.tint)
  if np.abs(tint).max() > 7:
    strongest = int(np.abs(tint).argmax())
    names = ("reddish", "greenish", "bluish") if tint[strongest] > 0 else COMPLEMENTS
    words.append(names[strongest])
  if not 5.5 < look.noise < 9:
    words.append("smooth" if look.noise < 7 else "grainy")
  return " ".join(["a", *words, "image : "]) if words else ""


class _World:
  """Images that are drawn once; each use draws a new caption."""

  def __init__(self, seed: int, tokenizer, all_patches_from: int):
    rng = np.random.default_rng((seed, 1))
    self.seed, self.tokenizer, self.all_patches_from = seed, tokenizer, all_patches_from
    self.scenes = [pretraining_scene(rng) for _ in range(IMAGES)]
    self.looks = [sample_look(rng) for _ in range(IMAGES)]
    self.images = np.stack(
      [
        np.asarray(render(scene, look, rng))
        for scene, look in tqdm(zip(self.scenes, self.looks, strict=True), "drawing", IMAGES)
      ]
    )
    self.attributes = np.stack([_attributes(scene) for scene in self.scenes])

  def batch(self, i: int) -> ImageBatch:
    """Returns the batch of step `i`."""
    rng = np.random.default_rng((self.seed, 2, i))
    chosen = rng.choice(IMAGES, size=BATCH, replace=False)
    texts = [
      describe_look(self.looks[j], rng)
      + language.caption(self.scenes[j], language.sample_style(rng), rng)
      for j in chosen
    ]
    ids, mask = self.tokenizer.tokenize(texts, LENGTH)
    kept = KEPT if i < self.all_patches_from else GRID * GRID
    keep = np.argsort(rng.random((BATCH, GRID * GRID)), axis=1)[:, :kept].astype(np.int32)
    attributes = np.take_along_axis(self.attributes[chosen], keep[:, :, None], axis=1)
    pixels = (self.images[chosen].astype(np.float32) / 255 - np.array(MEAN)) / np.array(STD)
    arrays: Any = (pixels.astype(np.float32), ids, mask, keep, attributes)
    return ImageBatch(*arrays)


def _attributes(scene: Scene) -> np.ndarray:
  out = np.full((GRID * GRID, 3), -1, np.int32)
  for thing in scene.things:
    labels = (
      list(COLOURS).index(thing.colour),
      SHAPES.index(thing.shape),
      int(thing.size == "big"),
    )
    out[cells_of(thing, GRID)] = labels
  return out


def _head(rngs: nnx.Rngs) -> nnx.Linear:
  return nnx.Linear(128, len(COLOURS) + len(SHAPES) + 2 + 1, rngs=rngs)


def _attribute_loss(
  logits: Float[Array, "b k classes"], labels: Int[Array, "b k 3"]
) -> Float[Array, ""]:
  """Returns the loss of colour, shape and size in patches with a thing, and of its presence."""
  there = labels[..., 0] >= 0
  splits = np.cumsum([len(COLOURS), len(SHAPES), 2])
  *parts, presence = jnp.split(logits, splits, axis=-1)
  loss = optax.sigmoid_binary_cross_entropy(presence[..., 0], there).mean()
  for i, part in enumerate(parts):
    losses = optax.softmax_cross_entropy_with_integer_labels(part, jnp.maximum(labels[..., i], 0))
    loss += jnp.sum(losses * there) / jnp.maximum(jnp.sum(there), 1)
  return loss


def _contrast(
  image: Float[Array, "b f"], text: Float[Array, "b f"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
  """Returns the symmetric InfoNCE loss of the batch (Radford et al. 2021, figure 3)."""
  image = image / jnp.linalg.norm(image, axis=-1, keepdims=True)
  text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
  logits = jnp.exp(jnp.minimum(log_scale, jnp.log(100.0))) * image @ text.T
  labels = jnp.arange(image.shape[0])
  both = [optax.softmax_cross_entropy_with_integer_labels(x, labels) for x in (logits, logits.T)]
  return (both[0].mean() + both[1].mean()) / 2
