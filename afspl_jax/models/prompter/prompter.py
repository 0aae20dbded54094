"""The prompter: all trainable leaves (BUILD.md, "Method"); all but `local` are shared."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.config import experiment as settings
from afspl_jax.config.fields import check_values
from afspl_jax.errors import UserError
from afspl_jax.models.contracts import VisionSizes
from afspl_jax.models.prompter.fusion import Fusion
from afspl_jax.models.prompter.local import Local
from afspl_jax.models.prompter.mapper import VisualMapper
from afspl_jax.models.prompter.pool import PoolChoice, PromptPool, unit_vectors
from afspl_jax.models.prompter.site_prompts import SitePrompts

# The last is the local prompt, or without one the prompt of the site that the image is from.
SOURCES = ("global", "visual", "textual", "local")


class Prompted(NamedTuple):
  """The vectors before the instruction, and the weights they were made with."""

  prompt: Float[Array, "b p d"]  # F, the fused prompt
  visual: Float[Array, "b v d"]  # V, the mapped image
  fusion: Float[Array, "b s"]  # weights of SOURCES
  pool: PoolChoice


class Prompter(nnx.Module):
  """Turns the features of an image and an instruction into soft prompts for the language model.

  All leaves are in units of `embedding_scale`. So a learning rate means the same for a language
  model with small embeddings and for one with large embeddings.

  Args:
    config: sizes and switches.
    vision: sizes of the vision encoder.
    embedding: the language model's embedding matrix.
    init_ids: ids of the words that `init = "text"` starts from: names of classes, or words of an
      instruction (Lester et al. 2021, sec. 2.2, compares random, vocabulary and class labels).
    contrast: whether the local leaves have the projection of a contrastive loss.
    sites: prompts of sites, which an image finds (k); 0 for none.
    rngs: stream `params`.

  Raises:
    UserError: a switch has an unknown value, or sizes do not fit.
  """

  def __init__(
    self,
    config: settings.Prompter,
    vision: VisionSizes,
    embedding: Float[Array, "n d"],
    init_ids: Int[Array, " words"],
    *,
    contrast: bool = False,
    sites: int = 0,
    rngs: nnx.Rngs,
  ):
    check_values(config, "prompter")
    if config.init == "text" and not init_ids.size:
      raise UserError(
        "prompter.init_text: expected words to start from; got none that the tokenizer knows"
      )
    self.see_image, self.has_local, self.has_sites = config.see_image, config.local, sites > 0
    with jax.ensure_compile_time_eval():  # also if only shapes are computed
      self.embedding_scale = float(jnp.sqrt(jnp.mean(jnp.square(embedding.astype(jnp.float32)))))
    words = embedding.astype(jnp.float32) / self.embedding_scale
    width = embedding.shape[1]

    if config.init == "text":
      words = words[init_ids]

    prompts = functools.partial(_initial_prompts, config, words, rngs)
    self.pool = _make_pool(config, prompts(config.pool), vision, rngs)
    self.visual_prompt = nnx.Param(prompts(1)[0])
    self.textual_prompt = nnx.Param(prompts(1)[0])
    self.fusion = Fusion(
      config.fusion,
      len(SOURCES) - (not config.local and not sites),
      weights=config.fusion_weights,
      feature_width=vision.feature_width,
      hidden=config.fusion_hidden,
      rngs=rngs,
    )
    self.mapper = VisualMapper(
      config.mapper,
      vision=vision,
      patch_pool=config.patch_pool,
      width=width,
      hidden=config.mapper_hidden,
      rngs=rngs,
    )
    # Last, so that it does not change the initial values of the leaves above.
    self.local = Local(
      prompts(1)[0] if config.local else None,
      width=width,
      feature_width=vision.feature_width,
      contrast=contrast,
      rngs=rngs,
    )
    if sites:
      self.sites = SitePrompts(prompts(sites), feature_width=vision.feature_width, rngs=rngs)

  def __call__(
    self,
    tokens: Float[Array, "b patches w"],
    image: Float[Array, "b f"],
    text: Float[Array, "b f"],
    personal: Bool[Array, " b"],
  ) -> Prompted:
    """Makes the prompts of a batch; arguments as in `types.Batch`."""
    if not self.see_image:
      tokens, image = jnp.zeros_like(tokens), jnp.zeros_like(image)
    unit_image = unit_vectors(image)
    features = jnp.concatenate([unit_image, unit_vectors(text)], axis=-1)
    chosen = self.pool(features)
    sources = [chosen.prompt, self.visual_prompt[...], self.textual_prompt[...]]
    available = [jnp.ones_like(personal)] * 3
    if self.has_local or self.has_sites:
      of_site, known = self._of_site(unit_image, personal)
      sources.append(of_site)
      available.append(known)
    fusion = self.fusion(features, jnp.stack(available, axis=1))
    sources = [jnp.broadcast_to(prompt, chosen.prompt.shape) for prompt in sources]
    prompt = jnp.einsum("bs,bspd->bpd", fusion, jnp.stack(sources, axis=1))
    visual = self.mapper(tokens, image)
    scale = self.embedding_scale
    return Prompted(scale * prompt, scale * visual, fusion, chosen)

  def _of_site(
    self, image: Float[Array, "b f"], personal: Bool[Array, " b"]
  ) -> tuple[Float[Array, "*b p d"], Bool[Array, " b"]]:
    """The local prompt; where it is not used, the prompt of the site that the image is from."""
    if not self.has_sites:
      return self.local.prompt[...], personal
    found = self.sites(image)
    if not self.has_local:
      return found.prompt, found.known
    prompt = jnp.where(personal[:, None, None], self.local.prompt[...], found.prompt)
    return prompt, personal | found.known


def _initial_prompts(
  config: settings.Prompter, words: Float[Array, "words d"], rngs: nnx.Rngs, number: int
) -> Float[Array, "number p d"]:
  shape = (number, config.tokens)
  if config.init == "random":
    return jax.random.normal(rngs.params(), (*shape, words.shape[1]))
  return words[jax.random.randint(rngs.params(), shape, 0, words.shape[0])]


def _make_pool(
  config: settings.Prompter, prompts: Float[Array, "m p d"], vision: VisionSizes, rngs: nnx.Rngs
) -> PromptPool:
  return PromptPool(
    prompts,
    feature_width=vision.feature_width,
    key_width=config.key_dim,
    mode=config.pool_mode,
    mass=config.pool_mass,
    k_min=config.k_min,
    k_max=config.k_max,
    temperature=config.temperature,
    rngs=rngs,
  )
