"""The key-value cache of T5's decoder."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class T5Cache(NamedTuple):
  """Keys and values of the decoder (contract `DecodeCache`); a pytree of arrays.

  The texts (beams) of a row share the keys and values of cross-attention, and one store for those
  of self-attention: at each earlier step a text attends to the slot in `lineage`. So only `lineage`
  changes when texts fork.

  Attributes:
    self_keys: for each layer, of the tokens so far; text i of step s has slot `s * beams + i`, zero
      after `step`; [b heads slots k].
    self_values: in the same slots; [b heads slots k].
    cross_keys: for each layer, of the encoder's output, computed once; [b heads l k].
    cross_values: at the same positions; [b heads l k].
    bias: the position bias of all steps; [1 heads t t].
    cross_bias: `HIDDEN` where the encoder's output may not be attended to; [b 1 1 l].
    lineage: for each text and step, the text of that step that it continues; [b beams t].
    step: number of tokens so far; [].
  """

  self_keys: tuple[Float[Array, "b heads slots k"], ...]
  self_values: tuple[Float[Array, "b heads slots k"], ...]
  cross_keys: tuple[Float[Array, "b heads l k"], ...]
  cross_values: tuple[Float[Array, "b heads l k"], ...]
  bias: Float[Array, "1 heads t t"]
  cross_bias: Float[Array, "b 1 1 l"]
  lineage: Int[Array, "b beams t"]
  step: Int[Array, ""]

  def fork(self, beams: int) -> "T5Cache":
    """Gives each row `beams` texts that continue its only text."""
    keys = tuple(jnp.repeat(x, beams, axis=2) for x in self.self_keys)
    values = tuple(jnp.repeat(x, beams, axis=2) for x in self.self_values)
    lineage = jnp.repeat(self.lineage, beams, axis=1)
    return self._replace(self_keys=keys, self_values=values, lineage=lineage)

  def follow(self, parents: Int[Array, "b beams"]) -> "T5Cache":
    """Lets each text continue the row's text `parents`; several may share a parent."""
    return self._replace(lineage=jnp.take_along_axis(self.lineage, parents[..., None], axis=1))
