"""What a user sees of a run while it goes on: a bar of rounds, sites, and TensorBoard's files."""

from collections.abc import Callable

from tqdm import tqdm

from afspl_jax.federation.server.rounds import RoundReport
from afspl_jax.reporting.status import client_text
from afspl_jax.reporting.tensorboard import TensorBoard
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.types import Source


class ProgressBar:
  """Shows a run's rounds, and keeps TensorBoard's files current.

  Args:
    rounds: of the whole run.
    board: gets every round.
    pictures: the images of the validation split, for the board.
    networked: whether sites are on other hosts: they are then shown one by one.
    bar: makes the bar.
    say: shows a line of text.
  """

  def __init__(
    self,
    rounds: int,
    board: TensorBoard,
    pictures: Source,
    networked: bool,
    bar: Callable[..., tqdm],
    say: Callable[[str], None],
  ):
    self._rounds, self._board, self._pictures = rounds, board, pictures
    self._networked, self._make_bar, self._say = networked, bar, say
    self._bar: tqdm | None = None
    self._last = {"loss": "-", "CIDEr": "-"}

  def waiting(self, text: str) -> None:
    """Shows why the run waits, tries again or ends."""
    self._say(text)

  def site_changed(self, text: str) -> None:
    """Shows that a site on another host has come, is gone or was rejected."""
    if self._networked:
      self._say(text)

  def round_done(self, report: RoundReport) -> None:
    """Moves the bar, and shows the clients that are not in the average; all of a network."""
    self._board.update(self._pictures)
    if self._bar is None:
      make = self._make_bar
      self._bar = make(total=self._rounds, initial=report.round, unit="round", desc="rounds")
    else:
      self._bar.update(1)
    if report.train:
      for name, shown in (("loss", "loss"), ("epsilon", "ε")):
        if name in report.train:
          self._last[shown] = f"{report.train[name]:.3f}"
    if report.val and "cider" in report.val:
      self._last["CIDEr"] = f"{report.val['cider']:.3f}"
    self._bar.set_postfix(self._last)
    for line in report.clients:
      if self._networked or parse_status(line["status"]).outcome is not Outcome.OK:
        self._bar.write(client_text(line))

  def close(self) -> None:
    """Leaves the bar as it is."""
    if self._bar is not None:
      self._bar.close()
