"""What a client keeps on its disk between rounds.

Its local leaves, its residual (the rows that it has not sent), and its control
(strategies/scaffold.py). There is one file per client and round, so that a round that is repeated
after a crash starts from the same state as the first time. Nothing of a file is ever sent, except
the change of a control.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import jax
import numpy as np
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import replaced_file
from afspl_jax.storage.disk_errors import disk_error
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.types import Params

_KEEP = 3  # rounds: those of the server's two checkpoints, and the one before them


class ClientStore:
  """The states of this process's clients, by site and round.

  Args:
    folder: each site gets a folder in it.
    read_only: nothing is saved, and no error message says to delete anything.
  """

  def __init__(self, folder: Path | str, *, read_only: bool = False):
    self.folder, self._read_only = Path(folder), read_only

  def beside(self, name: str) -> "ClientStore":
    """The store in the folder of this name next to this one."""
    return ClientStore(self.folder.with_name(name), read_only=self._read_only)

  def save(self, site: str, round: int, state: Params) -> None:
    """Writes a client's state after a round, and deletes states of later rounds.

    Raises:
      UserError: it cannot be written.
    """
    if self._read_only:
      raise ValueError(f"{self.folder}: this store is read-only")
    file = self.folder_of(site) / f"round_{round:06d}.safetensors"
    try:
      self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # readable by its owner only
      file.parent.mkdir(exist_ok=True)
      with replaced_file(file) as scratch:
        save_file(_contiguous(state), scratch)
      rounds = self._rounds(site)
      here = rounds.index(file)
      # Later states are from before the run went back to an earlier round.
      for stale in (*rounds[: max(here + 1 - _KEEP, 0)], *rounds[here + 1 :]):
        stale.unlink()
      for scratch in file.parent.glob("round_*.tmp"):  # of a process that was killed while writing
        scratch.unlink()
    except (OSError, SafetensorError) as error:
      raise disk_error(file, f"the state of {site}", error) from error

  def sites(self) -> list[str]:
    """The names of the sites that have a state here."""
    files = self.folder.glob("*/round_*.safetensors")
    return sorted({unquote(file.parent.name) for file in files})

  def newest(self, site: str) -> int | None:
    """The newest round of which there is a state of a client."""
    files = self._rounds(site)
    return _round(files[-1]) if files else None

  def load(self, site: str, before: int, template: Params, *, part: bool = False) -> Params | None:
    """A client's newest state of a round below `before`, or None if it is new.

    Args:
      site: its name.
      before: a round; states of this round or later are ignored.
      template: a state of the expected structure, shapes and dtypes.
      part: the file may have more leaves than the template; they are ignored.

    Raises:
      UserError: the file is damaged or belongs to another model.
    """
    files = [file for file in self._rounds(site) if _round(file) < before]
    if not files:
      return None
    expected = _contiguous(template)
    try:
      found = load_file(files[-1])
      if part:
        found = {name: leaf for name, leaf in found.items() if name in expected}
      if _form(found) != _form(expected):
        raise ValueError(f"leaves {_form(found)}")
    except (OSError, SafetensorError, ValueError) as error:
      advice = "Delete the file to go on from the round before"
      if self._read_only:  # it may be the only copy, or intact and of another run
        advice = "Leave the file where it is. Another round's file may be intact: --round=N"
      raise UserError(
        f"{files[-1]}: expected the state of {site} with leaves {_form(expected)}; got: {error}."
        f" {advice}"
      ) from error
    return jax.tree.unflatten(jax.tree.structure(template), [found[name] for name in expected])

  def folder_of(self, site: str) -> Path:
    """The folder of a site's state."""
    # Any name gives one folder inside ours. quote() does not escape dots.
    return self.folder / quote(site, safe="").replace(".", "%2E")

  def _rounds(self, site: str) -> list[Path]:
    return sorted(self.folder_of(site).glob("round_*.safetensors"))


def _round(file: Path) -> int:
  return int(file.stem.split("_")[1])


def _contiguous(state: Params) -> dict[str, Shaped[np.ndarray, "..."]]:
  """Leaves by name, as safetensors takes them."""
  return {name: np.asarray(leaf, order="C") for name, leaf in named_leaves(state).items()}


def _form(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
  return {name: f"{leaf.dtype}{leaf.shape}" for name, leaf in sorted(leaves.items())}
