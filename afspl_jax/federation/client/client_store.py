"""What a client keeps between rounds, on its own disk.

Its own prompt, what it has not sent, and its control (strategies/scaffold.py). One file a client
and round, so that a round that is repeated after a crash starts from what the client knew before
it, as if the crash had not been. Nothing here is ever sent; of a control, what was added to it is.
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
from afspl_jax.storage.pytrees import named_leaves
from afspl_jax.types import Params

_KEEP = 3  # rounds: those of the server's two checkpoints, and the one before them


class ClientStore:
  """States of the clients of this process, by site and round.

  Args:
    folder: of the run; each site gets a folder in it.
    read_only: the run is only looked at: nothing is saved, and no error says to delete anything.
  """

  def __init__(self, folder: Path | str, *, read_only: bool = False):
    self.folder, self._read_only = Path(folder), read_only

  def save(self, site: str, round: int, state: Params) -> None:
    """Keeps a client's state after a round, whole, in place of any of that round or later.

    Raises:
      UserError: the disk refuses.
    """
    if self._read_only:
      raise ValueError(f"{self.folder}: this store is only read")
    file = self._site(site) / f"round_{round:06d}.safetensors"
    try:
      self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the sites' own eyes only
      file.parent.mkdir(exist_ok=True)
      with replaced_file(file) as scratch:
        save_file(_contiguous(state), scratch)
      rounds = self._rounds(site)
      here = rounds.index(file)
      # What is newer is of a run that began again further back, and knew what this one does not.
      for stale in (*rounds[: max(here + 1 - _KEEP, 0)], *rounds[here + 1 :]):
        stale.unlink()
    except (OSError, SafetensorError) as error:
      raise UserError(
        f"{file}: expected to write the state of {site}; got: {error}. Free the disk and start the"
        " same command again"
      ) from error

  def sites(self) -> list[str]:
    """The names of those that have a state here."""
    files = self.folder.glob("*/round_*.safetensors")
    return sorted({unquote(file.parent.name) for file in files})

  def load(self, site: str, before: int, template: Params, *, part: bool = False) -> Params | None:
    """A client's newest state of a round below `before`, or None if it is new.

    Args:
      site: its name.
      before: a round; what the client learned in it or later is not looked at.
      template: a state of the expected structure, shapes and dtypes.
      part: the state may hold more than the template, which is then not returned.

    Raises:
      UserError: the file is damaged or of another model.
    """
    files = [file for file in self._rounds(site) if int(file.stem.split("_")[1]) < before]
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
      if self._read_only:  # it may be the only copy, or whole and of another run
        advice = "Leave the file where it is. Another round's may be whole: --round=N"
      raise UserError(
        f"{files[-1]}: expected the state of {site} with leaves {_form(expected)}; got: {error}."
        f" {advice}"
      ) from error
    return jax.tree.unflatten(jax.tree.structure(template), [found[name] for name in expected])

  def _site(self, site: str) -> Path:
    # Whatever it is called, a folder of its own and inside ours: quote leaves dots as they are.
    return self.folder / quote(site, safe="").replace(".", "%2E")

  def _rounds(self, site: str) -> list[Path]:
    return sorted(self._site(site).glob("round_*.safetensors"))


def _contiguous(state: Params) -> dict[str, Shaped[np.ndarray, "..."]]:
  """Leaves by name, as safetensors takes them."""
  return {name: np.asarray(leaf, order="C") for name, leaf in named_leaves(state).items()}


def _form(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
  return {name: f"{leaf.dtype}{leaf.shape}" for name, leaf in sorted(leaves.items())}
