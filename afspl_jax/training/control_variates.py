"""Control variates in local training: what corrects a client's gradients, and what these were.

Pure and traced, for one client; federation/strategies/scaffold.py has the method. Only the leaves
that travel are corrected: a client's own are compared with nobody's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afspl_jax.models.prompter.local import join, split
from afspl_jax.types import Params


class Control(NamedTuple):
  """A client's, in a round. Trees are of the shared leaves, and of the gradients' dtypes."""

  correction: Params  # added to the gradient of every local step
  total: Params  # the sum of the gradients without it
  steps: Float[Array, ""]  # that were summed


def begin(correction: Params) -> Control:
  """The control before the first local step."""
  return Control(correction, jax.tree.map(jnp.zeros_like, correction), jnp.zeros(()))


def correct(grads: Params, control: Control | None) -> tuple[Params, Control | None]:
  """The gradient to step by, and the control after the step.

  Args:
    grads: of the loss, for all leaves.
    control: before the step; None: gradients are taken as they are.
  """
  if control is None:
    return grads, None
  shared, own = split(grads)
  corrected = jax.tree.map(jnp.add, shared, control.correction)
  total = jax.tree.map(jnp.add, control.total, shared)
  return join(corrected, own), Control(control.correction, total, control.steps + 1)


def mean_gradient(control: Control) -> Params:
  """Over the steps, of the shared leaves, without the correction; zeros if there was no step."""
  return jax.tree.map(lambda total: total / jnp.maximum(control.steps, 1), control.total)
