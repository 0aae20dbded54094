"""The key-value cache of T5's decoder."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class T5Cache(NamedTuple):
  """What the decoder keeps between two steps; a pytree of arrays.

  A row's texts (beams) share its cross-attention and one store of their own keys and values: a text
  sees of each step the slot that `lineage` names. So nothing but `lineage` moves when texts part.

  Attributes:
    self_keys: of the tokens so far, a layer each; text i's of step s is at slot `s * beams + i`,
      zero beyond `step`; [b heads slots k].
    self_values: beside them; [b heads slots k].
    cross_keys: of the encoder's output, a layer each, computed once; [b heads l k].
    cross_values: beside them; [b heads l k].
    bias: what positions add to the scores of a row's texts at any step; [1 heads t t].
    cross_bias: `HIDDEN` where the encoder's output may not be attended to; [b 1 1 l].
    lineage: the text, of each step, that a text goes on from; [b beams t].
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
    """Gives each row `beams` texts that go on from its only one."""
    keys = tuple(jnp.repeat(x, beams, axis=2) for x in self.self_keys)
    values = tuple(jnp.repeat(x, beams, axis=2) for x in self.self_values)
    lineage = jnp.repeat(self.lineage, beams, axis=1)
    return self._replace(self_keys=keys, self_values=values, lineage=lineage)

  def follow(self, parents: Int[Array, "b beams"]) -> "T5Cache":
    """Lets each text go on from the row's text `parents`, which several may share."""
    return self._replace(lineage=jnp.take_along_axis(self.lineage, parents[..., None], axis=1))
