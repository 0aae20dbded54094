"""Activation functions by the name that a Hugging Face config gives them."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from afspl_jax.errors import UserError


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """GELU by the error function; the default of `jax.nn.gelu` is the tanh form."""
  return jax.nn.gelu(x, approximate=False)


def tanh_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """GELU by its tanh approximation, called gelu_new in T5 v1.1."""
  return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable] = {
  "quick_gelu": quick_gelu,
  "gelu": exact_gelu,
  "gelu_new": tanh_gelu,
  "gelu_pytorch_tanh": tanh_gelu,
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


def check_activation(name: str, where: str) -> str:
  """Returns `name` if it is known.

  Args:
    name: the activation's Hugging Face name.
    where: the config field that named it, for the message.

  Raises:
    UserError: if it is not one of `ACTIVATIONS`.
  """
  if name not in ACTIVATIONS:
    raise UserError(
      f"{where}: expected one of {', '.join(sorted(ACTIVATIONS))}; got {name!r}."
      " Use a checkpoint with one of these, or add the function to ACTIVATIONS."
    )
  return name
