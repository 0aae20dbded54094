"""Finds the checkpoint folder of a backbone, and fetches it from the hub where it is missing."""

import shlex
from pathlib import Path

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface import hub
from afspl_jax.models.huggingface.gguf_folder import gguf_folder
from afspl_jax.storage.user_cache import user_cache

TINY = Path(__file__).parents[1] / "tiny"


class MissingBackbone(UserError):
  """A checkpoint was not found; the message says how to get it."""


def locate(name: str, field: str, *, fetch: bool = True) -> Path:
  """Finds the folder of a checkpoint.

  Args:
    name: "tiny", a folder, a GGUF file, or a Hugging Face repository such as
      "google/flan-t5-base".
    field: the field of `backbone` that has the name, "clip" or "t5".
    fetch: fetch a repository that is not in Hugging Face's cache, unless HF_HUB_OFFLINE is set.

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
  cached, why = hub.cached_folder(name), ""
  if cached is not None and (hub.has_weights(cached) or not fetch or hub.is_offline()):
    return cached
  if fetch:
    try:
      return hub.fetch_checkpoint(name)
    except hub.HubError as error:
      raise MissingBackbone(f"backbone.{field}: {error}") from error
    except hub.Unreachable as error:
      why = f"; {error}"
  raise MissingBackbone(
    f"backbone.{field}: no folder {folder.absolute()}, and no {name} in {hub.cache()}{why}.\n"
    f"  With network access: hf download {shlex.quote(name)}\n"
    f"  If it is elsewhere, add --config.backbone.{field}=FOLDER"
  )
