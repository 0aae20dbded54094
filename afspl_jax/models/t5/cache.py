"""The key-value cache of T5's decoder."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from afspl_jax.models.layers.lineage import Lineage, fork_slots


class T5Cache(NamedTuple):
  """Keys and values of the decoder (contract `DecodeCache`); a pytree of arrays.

  The texts (beams) of a row share the keys and values of cross-attention, and one store for those
  of self-attention.

  Attributes:
    self_keys: for each layer, of the tokens so far, in the slots of `Lineage`; [b heads slots k].
    self_values: in the same slots; [b heads slots k].
    cross_keys: for each layer, of the encoder's output, computed once; [b heads l k].
    cross_values: at the same positions; [b heads l k].
    bias: the position bias of all steps; [1 heads t t].
    cross_bias: `HIDDEN` where the encoder's output may not be attended to; [b 1 1 l].
    lineage: of the texts.
  """

  self_keys: tuple[Float[Array, "b heads slots k"], ...]
  self_values: tuple[Float[Array, "b heads slots k"], ...]
  cross_keys: tuple[Float[Array, "b heads l k"], ...]
  cross_values: tuple[Float[Array, "b heads l k"], ...]
  bias: Float[Array, "1 heads t t"]
  cross_bias: Float[Array, "b 1 1 l"]
  lineage: Lineage

  @property
  def step(self) -> Int[Array, ""]:
    """Number of steps so far: of tokens, with the start token."""
    return self.lineage.step

  def fork(self, beams: int) -> "T5Cache":
    """Gives each row `beams` texts that continue its only text."""
    keys = tuple(fork_slots(x, beams) for x in self.self_keys)
    values = tuple(fork_slots(x, beams) for x in self.self_values)
    return self._replace(self_keys=keys, self_values=values, lineage=self.lineage.fork(beams))

  def follow(self, parents: Int[Array, "b beams"]) -> "T5Cache":
    """Lets each text continue the row's text `parents`; several may share a parent."""
    return self._replace(lineage=self.lineage.follow(parents))
