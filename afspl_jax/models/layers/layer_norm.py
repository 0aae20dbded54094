"""LayerNorm, as the backbones use it."""

from typing import Protocol, runtime_checkable

from flax import nnx
from jax.typing import DTypeLike


@runtime_checkable
class NormSizes(Protocol):
  """What a config says of its norms."""

  @property
  def width(self) -> int:
    """Size of a vector."""
    ...

  @property
  def norm_epsilon(self) -> float:
    """Added to the variance."""
    ...


def layer_norm(
  config: NormSizes, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm:
  """Makes a LayerNorm that computes the variance from deviations.

  The fast variance, E[x²] - E[x]², loses digits if the mean is large, as it is in CLIP.
  """
  return nnx.LayerNorm(
    config.width,
    epsilon=config.norm_epsilon,
    use_fast_variance=False,
    dtype=dtype,
    param_dtype=param_dtype,
    rngs=rngs,
  )
