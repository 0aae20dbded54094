"""Adaptive federated soft prompt learning for vision-language models.

`load` opens a finished run; all else is in the modules.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from afspl_jax.runs.trained.model import Model


def load(run: Any, **options: Any) -> "Model":
  """Opens the prompter of a run's folder or an exported file: see `afspl_jax.model.load`."""
  from afspl_jax.runs.trained import model  # takes seconds, which importing the package must not

  return model.load(run, **options)
