"""Versions of the installed packages, as a run records them."""

import importlib.metadata
import platform

_PACKAGES = (
  "afspl_jax",
  "jax",
  "flax",
  "optax",
  "orbax-checkpoint",
  "flwr",
  "transformers",
  "numpy",
)


def installed_version(package: str) -> str:
  """Returns the installed version of a package."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"  # afspl_jax itself, if it runs from a checkout


def installed_versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that decide a run's numbers."""
  return {
    "python": platform.python_version(),
    **{name: installed_version(name) for name in _PACKAGES},
  }
