"""What most strategies have in common: a client half that adds nothing, and checked options."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from afspl_jax.config import setting
from afspl_jax.types import Params


class ServerSide:
  """A strategy whose sites minimise their own loss, and whose server by default keeps nothing."""

  of_mean: ClassVar[bool] = False  # `aggregate` uses only the mean of the updates
  of_losses: ClassVar[bool] = False  # it needs losses that sites send

  def client_penalty(self, params: Params, global_params: Params) -> Float[Array, ""]:
    """Zero: sites minimise their own loss."""
    return jnp.zeros(())

  def init(self, params: Params) -> Any:
    """Nothing is kept between rounds."""
    return {}


def require_option(strategy: Any, option: str, holds: bool, expected: str) -> None:
  """Refuses an option's value unless `holds`.

  Raises:
    SettingError: names the strategy by its file, the option, and what was expected.
  """
  name = type(strategy).__module__.rpartition(".")[2]
  setting.require(f"fed.strategy: {name}: {option}", getattr(strategy, option), holds, expected)
