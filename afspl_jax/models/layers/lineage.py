"""Which text continues which: how the texts of a row share one store of keys and values.

The text `i` of step `s` has slot `s * beams + i` in the store. Each text attends to the slots in
its lineage, so nothing but the lineage changes when texts fork or continue another one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Lineage(NamedTuple):
  """The lineage of every text; a pytree of arrays.

  Attributes:
    ancestors: for each text and step, the text of that step that it continues.
    step: number of steps so far.
  """

  ancestors: Int[Array, "b beams t"]
  step: Int[Array, ""]

  @classmethod
  def start(cls, rows: int, length: int) -> "Lineage":
    """One text for each row, without steps, of up to `length`; a further one overwrites the last.

    Args:
      rows: b.
      length: the most steps that will be taken.
    """
    return cls(jnp.zeros((rows, 1, length), jnp.int32), jnp.zeros((), jnp.int32))

  def fork(self, beams: int) -> "Lineage":
    """Gives each row `beams` texts that continue its only text."""
    return self._replace(ancestors=jnp.repeat(self.ancestors, beams, axis=1))

  def follow(self, parents: Int[Array, "b beams"]) -> "Lineage":
    """Lets each text continue the row's text `parents`."""
    return self._replace(ancestors=jnp.take_along_axis(self.ancestors, parents[..., None], axis=1))

  def advance(self) -> tuple["Lineage", Bool[Array, "b beams t beams"]]:
    """Takes a step.

    Returns:
      The lineage with the step in it, and for each text which slots of each step it sees.
    """
    rows, beams, length = self.ancestors.shape
    texts = jnp.arange(beams, dtype=jnp.int32)
    here = jnp.broadcast_to(texts[:, None], (rows, beams, 1))
    ancestors = jax.lax.dynamic_update_slice(self.ancestors, here, (0, 0, self.step))
    seen = (ancestors[..., None] == texts) & (jnp.arange(length) <= self.step)[:, None]
    return Lineage(ancestors, self.step + 1), seen


def fork_slots(
  store: Float[Array, "b heads slots k"], beams: int, before: int = 0
) -> Float[Array, "b heads more k"]:
  """Makes room for `beams` texts in the store of one text.

  Args:
    store: keys or values.
    beams: number of texts.
    before: first slots, which belong to all texts.
  """
  shared, own = store[:, :, :before], store[:, :, before:]
  return jnp.concatenate([shared, jnp.repeat(own, beams, axis=2)], axis=2)
