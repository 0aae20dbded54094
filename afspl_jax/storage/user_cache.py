"""The folder in which this package keeps what it can make again."""

import os
from pathlib import Path


def user_cache() -> Path:
  """The folder, which may not exist yet; XDG_CACHE_HOME decides where it is."""
  return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "afspl_jax"
