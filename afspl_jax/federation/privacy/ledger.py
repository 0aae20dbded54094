"""The number of noisy releases, and the sites in them: epsilon is computed from these counts."""

import json
from collections.abc import Iterable
from pathlib import Path

from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.disk_errors import disk_error
from afspl_jax.storage.json_text import parse_json


class Ledger:
  """Counts releases, on disk before the noise of a release is drawn.

  A run that goes on after a crash repeats a round with other noise, and both releases reveal
  something. So counts are never reduced, not even for a round that failed.

  Args:
    file: of a run's folder; it need not exist yet.

  Raises:
    UserError: the file is not a ledger.
  """

  def __init__(self, file: Path):
    self._file = file
    self.releases = 0
    self._took_part: dict[str, int] = {}
    if file.exists():
      self._read()

  def took_part(self, site: str) -> int:
    """The number of releases that had the site."""
    return self._took_part.get(site, 0)

  def most(self, sites: Iterable[str] = ()) -> int:
    """The largest count of any site, if these sites were in one more release."""
    once_more = max((self._took_part.get(site, 0) + 1 for site in sites), default=0)
    return max(once_more, max(self._took_part.values(), default=0))

  def charge(self, sites: Iterable[str]) -> None:
    """Adds a release with these sites; it is on disk when this returns."""
    self.releases += 1
    for site in sites:
      self._took_part[site] = self._took_part.get(site, 0) + 1
    entries = {"releases": self.releases, "took_part": dict(sorted(self._took_part.items()))}
    try:
      self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
      write_text(self._file, json.dumps(entries, indent=1) + "\n")
    except OSError as error:
      raise disk_error(self._file, "the count of releases", error) from error

  def _read(self) -> None:
    try:
      found = parse_json(self._file.read_bytes())
      counts = [found["releases"], *found["took_part"].values()]
      if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts that are not whole numbers")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
      raise UserError(
        f"{self._file}: expected the count of releases of this run; got: {error!r:.300}. Without"
        " it the privacy budget that was spent is unknown. Start in another --workdir"
      ) from error
    self.releases, self._took_part = found["releases"], found["took_part"]
