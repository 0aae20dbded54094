"""Control variates in local training: they correct a client's gradients, and record them.

Pure, traced functions for one client; federation/strategies/scaffold.py has the method. Only shared
leaves are corrected; local leaves have no counterpart at other clients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afspl_jax.models.prompter.local import join_local, split_like
from afspl_jax.types import Params


class Control(NamedTuple):
  """The state for one client in a round; trees of the shared leaves, in the gradients' dtypes."""

  correction: Params  # added to the gradient of every local step
  total: Params  # the sum of the gradients without it
  steps: Float[Array, ""]  # number of summed gradients


def start_control(correction: Params) -> Control:
  """Makes the state before the first local step."""
  return Control(correction, jax.tree.map(jnp.zeros_like, correction), jnp.zeros(()))


def correct_gradients(grads: Params, control: Control | None) -> tuple[Params, Control | None]:
  """Corrects the gradient of a step.

  Args:
    grads: of the loss, for all leaves.
    control: the state before the step; None for no correction.

  Returns:
    The corrected gradient, and the state after the step.
  """
  if control is None:
    return grads, None
  shared, local = split_like(grads, control.correction)
  corrected = jax.tree.map(jnp.add, shared, control.correction)
  total = jax.tree.map(jnp.add, control.total, shared)
  return join_local(corrected, local), Control(control.correction, total, control.steps + 1)


def mean_gradient(control: Control) -> Params:
  """The mean gradient of the shared leaves without correction; zeros if there was no step."""
  return jax.tree.map(lambda total: total / jnp.maximum(control.steps, 1), control.total)
