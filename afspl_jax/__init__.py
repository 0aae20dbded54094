"""Adaptive federated soft prompt learning for vision-language models.

`load` opens a trained run; everything else is in the modules.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from afspl_jax.runs.trained.model import Model


def load(run: Any, **options: Any) -> "Model":
  """Opens the model in a run folder or an exported file; see `afspl_jax.runs.trained.model.load`.

  Args:
    run: the run folder, a file or folder of `afspl export`, or the name of its repository.
    **options: the keyword arguments of `afspl_jax.runs.trained.model.load`.
  """
  from afspl_jax.runs.trained import model  # not above: it takes seconds to import

  return model.load(run, **options)
