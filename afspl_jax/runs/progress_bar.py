"""Shows the progress of a run: a bar of rounds, lines about clients, and TensorBoard events."""

from collections.abc import Callable

from tqdm import tqdm

from afspl_jax.federation.server.progress import RoundReport
from afspl_jax.reporting.status import client_text
from afspl_jax.reporting.tensorboard import TensorBoard
from afspl_jax.storage.client_status import Outcome, parse_status
from afspl_jax.types import Source


class ProgressBar:
  """Shows the rounds of a run, and updates its TensorBoard events.

  Args:
    rounds: number of rounds of the whole run.
    board: writes the TensorBoard events.
    images: the validation split, for its images.
    remote: whether sites are on other hosts; then each client has a line in each round.
    make_bar: makes the progress bar.
    say: prints a line of text.
  """

  def __init__(
    self,
    rounds: int,
    board: TensorBoard,
    images: Source,
    remote: bool,
    make_bar: Callable[..., tqdm],
    say: Callable[[str], None],
  ):
    self._rounds, self._board, self._images = rounds, board, images
    self._remote, self._make_bar, self._say = remote, make_bar, say
    self._bar: tqdm | None = None
    self._last = {"loss": "-", "CIDEr": "-"}

  def waiting(self, text: str) -> None:
    """Prints why the run waits, retries or ends."""
    self._say(text)

  def site_changed(self, text: str) -> None:
    """Prints that a remote site connected, disconnected or was rejected."""
    if self._remote:
      self._say(text)

  def round_done(self, report: RoundReport) -> None:
    """Advances the bar, and prints the clients that failed, or all remote clients."""
    self._board.update(self._images)
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
      if self._remote or parse_status(line["status"]).outcome is not Outcome.OK:
        self._bar.write(client_text(line))

  def close(self) -> None:
    """Closes the bar."""
    if self._bar is not None:
      self._bar.close()
