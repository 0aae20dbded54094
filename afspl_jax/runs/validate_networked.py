"""What a federation over a network refuses: settings for studies in one process."""

from afspl_jax.config.experiment import Experiment
from afspl_jax.errors import UserError


def validate_networked(config: Experiment, who: str) -> None:
  """Rejects what is for studies in one process.

  Args:
    config: of a federation over a network.
    who: asks for it: this host's role, or Flower's command.

  Raises:
    UserError: naming the fields, and what they may be.
  """
  fed, attack = config.fed, config.attack
  if fed.newcomers or fed.finetune or fed.share == "none" or attack.kind != "none":
    raise UserError(
      f"{who}: expected fed.newcomers=0, fed.finetune=0, fed.share=all and attack.kind=none, since"
      f" the others are for studies in one process; got {fed.newcomers}, {fed.finetune},"
      f" {fed.share} and {attack.kind}"
    )
