"""Where the prompter meets the frozen T5: encoder input, encoder states, logits.

Everything here is a pure function of `params` (the prompter's leaves), `frozen` (T5's leaves) and
a batch. The target is an argument of `logits` alone, as the teacher-forced decoder's input: what
the encoder sees is the same in training and in use.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.models.prompter.prompter import Prompted, Prompter
from afspl_jax.models.t5.t5 import T5, DecodeCache, shift_right
from afspl_jax.types import Batch, Params


class Encoded(NamedTuple):
  """Encoder states of a batch, with what the prompter made."""

  states: Float[Array, "b l d"]
  mask: Bool[Array, "b l"]
  prompted: Prompted


def leaves(module: nnx.Module) -> Params:
  """The module's parameters as nested dicts of arrays, which alias the module's own."""
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def prefix(prompted: Prompted) -> Float[Array, "b x d"]:
  """`[F ; V]`, the vectors before the instruction."""
  return jnp.concatenate([prompted.prompt, prompted.visual], axis=1)


def mean_state(states: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b d"]:
  """The mean of the encoder states that `mask` keeps."""
  kept = mask[..., None]
  return jnp.sum(states * kept, axis=1) / jnp.sum(kept, axis=1)


class Captioner:
  """The forward passes, for a prompter and a T5 of given structure.

  Args:
    prompter: only its structure is kept; its leaves come as `params`.
    t5: only its structure is kept; its leaves come as `frozen`.
  """

  def __init__(self, prompter: Prompter, t5: T5):
    # Structure only: whoever donates the leaves must not find us holding them.
    self._prompter, self._t5 = nnx.graphdef(prompter), nnx.graphdef(t5)
    self.pad_id, self.eos_id = t5.config.pad_id, t5.config.eos_id

  def prompt(self, params: Params, batch: Batch) -> Prompted:
    """Makes the prompts of a batch; T5 does not run."""
    prompter = nnx.merge(self._prompter, params)
    return prompter(batch.tokens, batch.image, batch.text, batch.personal)

  def encode(self, params: Params, frozen: Params, batch: Batch) -> Encoded:
    """Builds `[F ; V ; embed(instruction)]` and encodes it; never looks at the targets."""
    prompted = self.prompt(params, batch)
    states, mask = self.read(frozen, prefix(prompted), batch.instruction, batch.instruction_mask)
    return Encoded(states, mask, prompted)

  def read(
    self,
    frozen: Params,
    prefix: Float[Array, "b x d"],
    instruction: Int[Array, "b l"],
    instruction_mask: Bool[Array, "b l"],
  ) -> tuple[Float[Array, "b xl d"], Bool[Array, "b xl"]]:
    """Encodes `[prefix ; embed(instruction)]`: the states, and which of them may be attended to."""
    t5 = nnx.merge(self._t5, frozen)
    words = t5.embed(instruction)
    embeddings = jnp.concatenate([prefix.astype(words.dtype), words], axis=1)
    mask = jnp.concatenate([jnp.ones(prefix.shape[:2], bool), instruction_mask], axis=1)
    return t5.encode(embeddings, mask), mask

  def projected(self, params: Params, mean_states: Float[Array, "b d"]) -> Float[Array, "b f"]:
    """Mean encoder states in CLIP's joint space, for the contrastive loss."""
    return nnx.merge(self._prompter, params).local.contrast(mean_states.astype(jnp.float32))

  def logits(
    self, frozen: Params, encoded: Encoded, targets: Int[Array, "b t"]
  ) -> Float[Array, "b t n"]:
    """Teacher-forced logits of each target token."""
    return self.teach(frozen, encoded.states, encoded.mask, targets)

  def teach(
    self,
    frozen: Params,
    states: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    targets: Int[Array, "b t"],
  ) -> Float[Array, "b t n"]:
    """The same from bare encoder states."""
    t5 = nnx.merge(self._t5, frozen)
    return t5.logits(t5.decode(shift_right(targets, self.pad_id), states, mask))

  def start_cache(self, frozen: Params, encoded: Encoded, length: int) -> DecodeCache:
    """Prepares decoding of up to `length` tokens."""
    return nnx.merge(self._t5, frozen).start_cache(encoded.states, encoded.mask, length)

  def decode_step(
    self, frozen: Params, ids: Int[Array, " r"], cache: DecodeCache
  ) -> tuple[Float[Array, "r n"], DecodeCache]:
    """Logits of the next token, and the cache with this one in it."""
    return nnx.merge(self._t5, frozen).decode_step(ids, cache)
