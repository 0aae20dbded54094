"""Finds the checkpoint folder of a backbone, without network access."""

import shlex
from pathlib import Path

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.gguf_folder import gguf_folder
from afspl_jax.storage.user_cache import user_cache

TINY = Path(__file__).parents[1] / "tiny"


class MissingBackbone(UserError):
  """A checkpoint was not found; the message says how to get it."""


def locate(name: str, field: str) -> Path:
  """Finds the folder of a checkpoint.

  Args:
    name: "tiny", a folder, a GGUF file, or a Hugging Face repository such as
      "google/flan-t5-base" that has been downloaded into Hugging Face's cache.
    field: the field of `backbone` that has the name, "clip" or "t5".

  Raises:
    MissingBackbone: it is in none of these places.
  """
  if name == "tiny":
    return TINY / field
  folder = Path(name).expanduser()
  if folder.suffix == ".gguf" and folder.is_file():
    return gguf_folder(folder, user_cache() / "gguf")
  if folder.is_dir():
    return folder
  from huggingface_hub import constants, try_to_load_from_cache
  from huggingface_hub.errors import HFValidationError

  try:
    config = try_to_load_from_cache(name, "config.json")
  except HFValidationError:  # neither a folder nor the name of a repository
    config = None
  if isinstance(config, str):
    return Path(config).parent
  raise MissingBackbone(
    f"backbone.{field}: no folder {folder.absolute()}, and no {name} in {constants.HF_HUB_CACHE}.\n"
    f"  With network access: hf download {shlex.quote(name)}\n"
    f"  If it is elsewhere, add --config.backbone.{field}=FOLDER"
  )
