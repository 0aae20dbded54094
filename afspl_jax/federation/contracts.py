"""Results, errors and protocols that the parts of the federation share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.types import Params

CLIENT_RAISED = 2  # code of a Flower Error; its name for it (ErrorCode) is private
POISSON = "poisson"  # of `fed.selection`: every client by a draw of its own, with a secret key
WITHIN = "within_clip"  # a reply's metric: whether its update was within the bound; adaptive only


class Refused(ValueError):
  """A reply that is left out; the message is its status in clients.jsonl."""


class SiteFault(RuntimeError):
  """What the server may know of a fault in a site's local training: its kind."""


class LocalResult(NamedTuple):
  """What a site found in one round."""

  params: Params  # what it offers of the shared leaves
  num_examples: int  # that the site holds; its weight in the average
  metrics: dict[str, float]  # "loss" and whatever else the server should see averaged
  masks: Params | None = None  # which rows of the params are sent; None: all
  control: Params | None = None  # what the site added to its control, where the server sent one


@runtime_checkable
class Trainer(Protocol):
  """Local training. Clients of one process share a trainer and are told apart by index."""

  def train(
    self, params: Params, client: int, round: int, *, control: Params | None = None
  ) -> LocalResult:
    """Trains on the client's data, starting from the global params (NumPy leaves).

    `control` is the server's (strategies.Controlled), and given only where it sent one.
    """
    ...

  def site(self, client: int) -> str:
    """The site's name, unique in the federation."""
    ...

  def num_examples(self, client: int) -> int:
    """How many examples the site holds: its weight in the average."""
    ...


@runtime_checkable
class CohortTrainer(Trainer, Protocol):
  """Trains clients of one process together, if it is told who will ask."""

  def expect(self, clients: Sequence[int]) -> None:
    """Tells which clients' `train` will be called next, from equal params."""
    ...


@runtime_checkable
class Guard(Protocol):
  """Bounds what leaves a client (guard.py)."""

  def bound(self, given: Any) -> float:
    """The bound of a round's update, from what the server said of it; ValueError if it may not."""
    ...

  def leave(self, site: str, result: LocalResult, start: Params, bound: float) -> LocalResult:
    """What may leave of a result that was trained from the global params `start`."""
    ...


@runtime_checkable
class Masks(Protocol):
  """Hides what leaves a client in a sum (secure/site.py)."""

  def register(self, app: ClientApp, client_of: Callable[[Context], int]) -> None:
    """Has the app answer all that is asked besides training."""
    ...

  def expect(self, client: int, round: int, content: RecordDict) -> None:
    """Raises unless a message that asks to train says how to hide the update."""
    ...

  def hide(
    self, client: int, content: RecordDict, result: LocalResult, start: Params, bound: float | None
  ) -> RecordDict:
    """The reply to that message."""
    ...
