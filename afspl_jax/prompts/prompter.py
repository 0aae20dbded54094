"""The prompter: everything that is trained, and all that travels (DESIGN, "Method")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from afspl_jax import config as settings
from afspl_jax.backbones.clip_config import ClipConfig
from afspl_jax.prompts.fusion import Fusion
from afspl_jax.prompts.mapper import VisualMapper
from afspl_jax.prompts.pool import PoolChoice, PromptPool, unit

SOURCES = ("global", "visual", "textual")


class Prompted(NamedTuple):
  """What the prompter puts before the instruction, and how it came about."""

  prompt: Float[Array, "b p d"]  # F, the fused prompt
  visual: Float[Array, "b v d"]  # V, the mapped image
  fusion: Float[Array, "b s"]  # weights of SOURCES
  pool: PoolChoice


class Prompter(nnx.Module):
  """Turns an image's and an instruction's CLIP features into soft prompts for T5.

  All leaves are kept in units of `embedding_scale`, so that learning rates mean the same to a
  T5 whose embeddings are small and to one whose embeddings are large.

  Args:
    config: sizes and switches.
    clip: sizes of the vision features.
    embedding: T5's embedding matrix; prompts start as embeddings of words.
    init_ids: ids of the words to start from; empty: words at random.
    rngs: stream `params`.
  """

  def __init__(
    self,
    config: settings.Prompter,
    clip: ClipConfig,
    embedding: Float[Array, "n d"],
    init_ids: Int[Array, " words"],
    *,
    rngs: nnx.Rngs,
  ):
    self.see_image = config.see_image
    self.embedding_scale = float(jnp.sqrt(jnp.mean(jnp.square(embedding.astype(jnp.float32)))))
    words = embedding.astype(jnp.float32) / self.embedding_scale
    if init_ids.size:
      words = words[init_ids]

    def prompts(number: int) -> Float[Array, "number p d"]:
      shape = (number, config.tokens)
      ids = jax.random.randint(rngs.params(), shape, 0, words.shape[0])
      return words[ids]

    self.pool = PromptPool(
      prompts(config.pool),
      feature_width=clip.joint_width,
      key_width=config.key_dim,
      mode=config.pool_mode,
      mass=config.pool_mass,
      k_min=config.k_min,
      k_max=config.k_max,
      temperature=config.temperature,
      rngs=rngs,
    )
    self.visual_prompt = nnx.Param(prompts(1)[0])
    self.textual_prompt = nnx.Param(prompts(1)[0])
    self.fusion = Fusion(
      config.fusion,
      len(SOURCES),
      weights=config.fusion_weights,
      feature_width=clip.joint_width,
      hidden=config.fusion_hidden,
      rngs=rngs,
    )
    self.mapper = VisualMapper(
      config.mapper,
      num_patches=clip.vision.num_patches,
      patch_pool=config.patch_pool,
      token_width=clip.vision.width,
      joint_width=clip.joint_width,
      width=embedding.shape[1],
      hidden=config.mapper_hidden,
      rngs=rngs,
    )

  def __call__(
    self,
    tokens: Float[Array, "b patches w"],
    image: Float[Array, "b f"],
    text: Float[Array, "b f"],
  ) -> Prompted:
    """Makes the prompts of a batch; arguments as in `types.Batch`."""
    if not self.see_image:
      tokens, image = jnp.zeros_like(tokens), jnp.zeros_like(image)
    features = jnp.concatenate([unit(image), unit(text)], axis=-1)
    chosen = self.pool(features)
    fusion = self.fusion(features)
    shape = chosen.prompt.shape
    sources = jnp.stack(
      [
        chosen.prompt,
        jnp.broadcast_to(self.visual_prompt[...], shape),
        jnp.broadcast_to(self.textual_prompt[...], shape),
      ],
      axis=1,
    )
    prompt = jnp.einsum("bs,bspd->bpd", fusion, sources)
    visual = self.mapper(tokens, image)
    scale = self.embedding_scale
    return Prompted(scale * prompt, scale * visual, fusion, chosen)
