"""What may be wrong with a data set, and how much of it a user lets pass."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from afspl_jax.errors import UserError

_SHOWN = 5  # faults that are told in full


class MissingData(UserError):
  """A data set is not where it was looked for; the message says how to get it."""


class Malformed(UserError):
  """One record that cannot be used.

  Args:
    where: its file and line, or file and number from 1.
    kind: what is wrong in a word or two, by which faults are counted.
    message: what was expected, what was found, what to do.
  """

  def __init__(self, where: str, kind: str, message: str):
    super().__init__(f"{where}: {message}")
    self.kind = kind


class Faults:
  """The malformed records of a data set, which are left out up to a number.

  Args:
    allowed: number of records; None for any, as when looking for all of them.
  """

  def __init__(self, allowed: int | None = 0):
    self._allowed = allowed
    self._told = 0
    self.found: list[Malformed] = []

  @contextlib.contextmanager
  def skipping(self) -> Iterator[None]:
    """Leaves out the record that is read within if it is malformed.

    Raises:
      UserError: it is, and is one more than allowed.
    """
    try:
      yield
    except Malformed as fault:
      self.found.append(fault)
      if self._allowed is None or len(self.found) <= self._allowed:
        return
      if not self._allowed:
        raise
      raise UserError(
        f"data.max_bad: expected at most {self._allowed} malformed records; got more, the last of"
        f" which is {fault} List all with: afspl prepare"
      ) from fault

  def tell(self) -> None:
    """Prints how many records have been left out since it was last told, and why."""
    new = self.found[self._told :]
    self._told = len(self.found)
    if new and self._allowed is not None:
      kinds = Counter(fault.kind for fault in new).most_common()
      counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
      print(f"left out {len(new)} malformed records ({counts}):")
      for fault in new[:_SHOWN]:
        print(f"  {fault}")
      if len(new) > _SHOWN:
        print(f"  and {len(new) - _SHOWN} more; list all with: afspl prepare")
