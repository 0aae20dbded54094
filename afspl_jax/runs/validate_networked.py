"""What a federation over a network refuses: settings for studies in one process."""

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.fields import changed
from afspl_jax.errors import UserError


def validate_networked(config: Experiment, who: str) -> None:
  """Rejects what is for studies in one process.

  Args:
    config: of a federation over a network.
    who: asks for it: this host's role, or Flower's command.

  Raises:
    UserError: naming the fields, and what they may be.
  """
  fed = config.fed
  allowed = {
    "fed.newcomers": (fed.newcomers, 0),
    "fed.finetune": (fed.finetune, 0),
    "fed.share": (fed.share, "all"),
    "attack.kind": (config.attack.kind, "none"),
  }
  if any(value != wanted for value, wanted in allowed.values()):
    expected = ", ".join(f"{name}={wanted}" for name, (_, wanted) in allowed.items())
    got = ", ".join(str(value) for value, _ in allowed.values())
    raise UserError(
      f"{who}: expected {expected}, since the others are for studies in one process; got {got}"
    )


def without_baselines(config: Experiment) -> Experiment:
  """The experiment as hosts of a network run it: nobody there has the data of all sites."""
  return changed(config, {"fed.compare": "none"})
