"""Where the prompter meets the frozen T5: encoder input, encoder states, logits.

Everything here is a pure function of `params` (the prompter's leaves), `frozen` (T5's leaves) and
a batch. The target is an argument of `logits` alone, as the teacher-forced decoder's input: what
the encoder sees is the same in training and in use.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from afspl_jax.backbones.t5 import T5, DecodeCache, shift_right
from afspl_jax.prompts.prompter import Prompted, Prompter
from afspl_jax.types import Batch, Params


class Encoded(NamedTuple):
  """Encoder states of a batch, with what the prompter made."""

  states: Float[Array, "b l d"]
  mask: Bool[Array, "b l"]
  prompted: Prompted


def leaves(module: nnx.Module) -> Params:
  """The module's parameters as nested dicts of arrays, which alias the module's own."""
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


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

  def encode(self, params: Params, frozen: Params, batch: Batch) -> Encoded:
    """Builds `[F ; V ; embed(instruction)]` and encodes it; never looks at the targets."""
    prompted = nnx.merge(self._prompter, params)(
      batch.tokens, batch.image, batch.text, batch.personal
    )
    t5 = nnx.merge(self._t5, frozen)
    words = t5.embed(batch.instruction)
    made = jnp.concatenate([prompted.prompt, prompted.visual], axis=1)
    embeddings = jnp.concatenate([made.astype(words.dtype), words], axis=1)
    made_mask = jnp.ones(made.shape[:2], bool)
    mask = jnp.concatenate([made_mask, batch.instruction_mask], axis=1)
    return Encoded(t5.encode(embeddings, mask), mask, prompted)

  def pool_prompt(self, params: Params, batch: Batch) -> Float[Array, "b p d"]:
    """The prompt that each row's keys match in the pool; T5 does not run."""
    prompter = nnx.merge(self._prompter, params)
    return prompter(batch.tokens, batch.image, batch.text, batch.personal).pool.prompt

  def projected(self, params: Params, encoded: Encoded) -> Float[Array, "b f"]:
    """The mean encoder state in CLIP's joint space, for the contrastive loss."""
    mask = encoded.mask[..., None]
    mean = jnp.sum(encoded.states * mask, axis=1) / jnp.sum(mask, axis=1)
    return nnx.merge(self._prompter, params).local.contrast(mean.astype(jnp.float32))

  def logits(
    self, frozen: Params, encoded: Encoded, targets: Int[Array, "b t"]
  ) -> Float[Array, "b t n"]:
    """Teacher-forced logits of each target token."""
    t5 = nnx.merge(self._t5, frozen)
    inputs = shift_right(targets, self.pad_id)
    return t5.logits(t5.decode(inputs, encoded.states, encoded.mask))

  def start_cache(self, frozen: Params, encoded: Encoded, length: int) -> DecodeCache:
    """Prepares decoding of up to `length` tokens."""
    return nnx.merge(self._t5, frozen).start_cache(encoded.states, encoded.mask, length)

  def decode_step(
    self, frozen: Params, ids: Int[Array, " b"], cache: DecodeCache
  ) -> tuple[Float[Array, "b n"], DecodeCache]:
    """Logits of the next token, and the cache with this one in it."""
    return nnx.merge(self._t5, frozen).decode_step(ids, cache)
