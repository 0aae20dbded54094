"""The prompter and the frozen language model together: prefix, states, logits.

Everything here is a pure function of `params` (the prompter's leaves), `frozen` (the language
model's leaves) and a batch. The target is an argument of `logits` and `target_logits` alone, so the
model reads the same prefix in training and in use.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.models.contracts import DecodeCache, LanguageModel, States
from afspl_jax.models.prompter.prompter import Prompted, Prompter
from afspl_jax.models.prompter.site_prompts import ROUTING_LEAVES
from afspl_jax.types import Batch, Params


class Encoded(NamedTuple):
  """A batch's prefixes as the language model has read them, and what the prompter made."""

  states: States
  mask: Bool[Array, "b l"]
  prompted: Prompted


def module_leaves(module: nnx.Module) -> Params:
  """The parameters of a module as nested dicts; the arrays are the module's, not copies."""
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def soft_prefix(prompted: Prompted) -> Float[Array, "b x d"]:
  """Joins `[F ; V]`, the vectors before the instruction."""
  return jnp.concatenate([prompted.prompt, prompted.visual], axis=1)


class Captioner:
  """The forward passes of a prompter and a language model.

  Args:
    prompter: only its structure is kept; its leaves come as `params`.
    language_model: only its structure is kept; its leaves come as `frozen`.

  Attributes:
    pad_id: the language model's padding token.
    eos_id: the token that ends a text.
    start_id: the token before every text, if the language model has one.
    fixed_leaves: names of the prompter's leaves that local training leaves as they are.
  """

  def __init__(self, prompter: Prompter, language_model: LanguageModel):
    # Structure only: a caller may donate the leaves, so nothing here may hold them.
    self._prompter, self._language_model = nnx.graphdef(prompter), nnx.graphdef(language_model)
    sizes = language_model.sizes
    self.pad_id, self.eos_id, self.start_id = sizes.pad_id, sizes.eos_id, sizes.start_id
    self.fixed_leaves = ROUTING_LEAVES if prompter.has_sites else ()

  def _model(self, frozen: Params) -> LanguageModel:
    return nnx.merge(self._language_model, frozen)

  def prompt(self, params: Params, batch: Batch) -> Prompted:
    """Makes the prompts of a batch; the language model does not run."""
    prompter = nnx.merge(self._prompter, params)
    return prompter(batch.tokens, batch.image, batch.text, batch.personal)

  def encode(self, params: Params, frozen: Params, batch: Batch) -> Encoded:
    """Builds `[F ; V ; embed(instruction)]` and encodes it, without the targets."""
    prompted = self.prompt(params, batch)
    instruction = batch.instruction, batch.instruction_mask
    return Encoded(*self.encode_prefix(frozen, soft_prefix(prompted), *instruction), prompted)

  def encode_prefix(
    self,
    frozen: Params,
    prefix: Float[Array, "b x d"],
    instruction: Int[Array, "b l"],
    instruction_mask: Bool[Array, "b l"],
  ) -> tuple[States, Bool[Array, "b xl"]]:
    """Encodes `[prefix ; embed(instruction)]`: the states, and the mask of its positions."""
    model = self._model(frozen)
    words = model.embed(instruction)
    embeddings = jnp.concatenate([prefix.astype(words.dtype), words], axis=1)
    mask = jnp.concatenate([jnp.ones(prefix.shape[:2], bool), instruction_mask], axis=1)
    return model.encode(embeddings, mask), mask

  def summarise(
    self, frozen: Params, states: States, mask: Bool[Array, "b l"]
  ) -> Float[Array, "b d"]:
    """One vector for each encoded row, from `encode_prefix`."""
    return self._model(frozen).summarise(states, mask)

  def project(self, params: Params, summaries: Float[Array, "b d"]) -> Float[Array, "b f"]:
    """Maps the rows' summaries to the joint space of images and texts, for the contrastive loss."""
    return nnx.merge(self._prompter, params).local.contrast(summaries.astype(jnp.float32))

  def logits(
    self, frozen: Params, encoded: Encoded, targets: Int[Array, "b t"]
  ) -> Float[Array, "b t n"]:
    """Teacher-forced logits of each target token."""
    return self.target_logits(frozen, encoded.states, encoded.mask, targets)

  def target_logits(
    self,
    frozen: Params,
    states: States,
    mask: Bool[Array, "b l"],
    targets: Int[Array, "b t"],
  ) -> Float[Array, "b t n"]:
    """The same from what `encode_prefix` returns."""
    return self._model(frozen).target_logits(states, mask, targets)

  def start(
    self, frozen: Params, encoded: Encoded, length: int
  ) -> tuple[Float[Array, "b n"], DecodeCache]:
    """Logits of the first token, and the cache for texts of up to `length` tokens."""
    return self._model(frozen).start(encoded.states, encoded.mask, length)

  def decode_step(
    self, frozen: Params, ids: Int[Array, " r"], cache: DecodeCache
  ) -> tuple[Float[Array, "r n"], DecodeCache]:
    """Logits of the next token, and the cache with this one in it."""
    return self._model(frozen).decode_step(ids, cache)
