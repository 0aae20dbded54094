"""Records of a data set that cannot be used, and how many of them may be left out."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from afspl_jax.errors import UserError

_SHOWN = 5  # bad records that are printed in full


class MissingData(UserError):
  """A data set was not found; the message says where it was expected and how to get it."""


class BadRecord(UserError):
  """One record that cannot be used.

  Args:
    where: its file and line, or file and number from 1.
    problem: what is wrong, in a word or two; bad records are counted by it.
    message: what was expected, what was found, what to do.
  """

  def __init__(self, where: str, problem: str, message: str):
    super().__init__(f"{where}: {message}")
    self.problem = problem


class BadRecords:
  """Collects the bad records of a data set, which are left out up to a limit.

  Args:
    allowed: the limit; None for no limit, as when looking for all of them.

  Attributes:
    found: the errors of the records left out so far.
    blank_texts: the record of each blank text that was skipped among others, which are kept. They
      do not count towards the limit.
  """

  def __init__(self, allowed: int | None = 0):
    self._allowed = allowed
    self._reported = 0
    self.found: list[BadRecord] = []
    self.blank_texts: list[str] = []
    self._reported_blanks = 0

  @contextlib.contextmanager
  def skipping(self) -> Iterator[None]:
    """Leaves out the record that is read inside the block if it is bad.

    Raises:
      UserError: it is bad, and exceeds the limit.
    """
    try:
      yield
    except BadRecord as error:
      self.found.append(error)
      if self._allowed is None or len(self.found) <= self._allowed:
        return
      if not self._allowed:
        raise
      raise UserError(
        f"data.max_bad: expected at most {self._allowed} malformed records; got more. The last is"
        f" {error} List all with: afspl prepare"
      ) from error

  def report(self) -> None:
    """Prints how many records and texts were left out since the last report, and why."""
    blank = self.blank_texts[self._reported_blanks :]
    self._reported_blanks = len(self.blank_texts)
    if blank and self._allowed is not None:
      print(f"left out {len(blank)} blank answers, the first of {blank[0]}")
    new = self.found[self._reported :]
    self._reported = len(self.found)
    if new and self._allowed is not None:
      problems = Counter(error.problem for error in new).most_common()
      counts = ", ".join(f"{count} {problem}" for problem, count in problems)
      print(f"left out {len(new)} malformed records ({counts}):")
      for error in new[:_SHOWN]:
        print(f"  {error}")
      if len(new) > _SHOWN:
        print(f"  and {len(new) - _SHOWN} more; list all with: afspl prepare")
