"""Results, errors and protocols that the parts of the federation share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from jaxtyping import Array, Float

from afspl_jax.storage.client_status import Outcome, Status, one_line
from afspl_jax.types import Params

T = TypeVar("T")

CLIENT_RAISED = 2  # code of a Flower Error; its name for it (ErrorCode) is private
LONGEST_NAME = 80  # characters of a site's name
POISSON = "poisson"  # a `fed.selection`: each client independently, with a secret key
WITHIN = "within_clip"  # a reply's metric: whether its update was within the bound; adaptive only


def is_site_name(name: str) -> bool:
  """Whether a text can be a site's name: one line, without spaces around it."""
  return 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip()


class Rejected(ValueError):
  """A site's part in a round that is left out: the reason, and with which outcome."""

  def __init__(self, reason: str, outcome: Outcome = Outcome.REJECTED):
    super().__init__(reason)
    self._outcome = outcome

  @property
  def status(self) -> Status:
    """The status of the client; the reason may quote what a peer sent."""
    first = f"{self._outcome}: "
    return Status(self._outcome, one_line(first + str(self))[len(first) :])


class SiteError(RuntimeError):
  """What the server may know of a failure in a site's local training: the type of the error."""


class SiteSpent(SiteError):
  """A site takes no further part: its privacy budget does not allow another round."""


class PartyError(ValueError):
  """The server asks a client for something that secure aggregation or its settings do not allow."""


class StepNoise(NamedTuple):
  """The random part of a cohort's DP-SGD: noise, and what is public about the sampling."""

  noise: Params  # int32 [k c ...]: steps of the grid of each sum of clipped gradients
  expected: Float[Array, " c"]  # examples in a batch, on average


class Update(NamedTuple):
  """What a site gives in one round: from its local training to the server's strategy."""

  site: str
  params: Params  # finite, of the global params' shapes and dtypes; NumPy leaves on the server
  masks: Params  # bool, broadcastable to the leaves: which rows count as the site's own; its params
  # elsewhere are the global ones
  num_examples: int  # positive; its weight in the average
  metrics: dict[str, float]  # "loss" and whatever else the server should see averaged; finite
  control: Params | None = None  # what the site added to its control, if the strategy has controls


@runtime_checkable
class Trainer(Protocol):
  """Local training of the clients of one process; each is named by its index."""

  def train_cohort(
    self, params: Params, clients: Sequence[int], round: int, *, control: Params | None = None
  ) -> Mapping[int, Update | Exception]:
    """Trains clients on their own data, each starting from the global params (NumPy leaves).

    `control` is the server's (strategies.Controlled), and given only if the server sent one.

    Returns:
      Each client's result, or the error of a client that failed: the others are not affected.
    """
    ...

  def site(self, client: int) -> str:
    """The site's name, unique in the federation."""
    ...

  def num_examples(self, client: int) -> int:
    """How many examples the site holds: its weight in the average."""
    ...


@runtime_checkable
class CohortApp(Protocol):
  """A ClientApp that can answer the training messages of several clients together."""

  def answer_together(
    self, requests: Sequence[tuple[Message, Context]]
  ) -> Iterator[Message | Exception]:
    """Yields a reply to each message, in order, or the error that its client failed with."""
    ...


def attempt(call: Callable[..., T], *args: Any, **kwargs: Any) -> T | Exception:
  """What a call returns or raises, so that one client's failure does not end another's work."""
  try:
    return call(*args, **kwargs)
  except Exception as error:  # noqa: BLE001 - the caller decides what becomes of it
    return error


@runtime_checkable
class Clipping(Protocol):
  """Bounds the update that a client sends (privacy/update_clipping.py)."""

  def agreed_bound(self, sent: Any) -> float:
    """The bound on a round's update that the server sent; ValueError if it may not be used."""
    ...

  def apply(self, update: Update, start: Params, bound: float) -> Update:
    """The update as it may be sent; it was trained from the global params `start`."""
    ...


@runtime_checkable
class Masking(Protocol):
  """Hides the update that a client sends in a sum (secure/site.py)."""

  def register(
    self, app: ClientApp, client_of: Callable[[Context], int], site_of: Callable[[int], str]
  ) -> None:
    """Lets the app answer all messages of secure aggregation besides training."""
    ...

  def check_request(self, client: int, round: int, content: RecordDict) -> None:
    """Raises unless a message that asks to train says how to mask the update."""
    ...

  def masked_reply(
    self, client: int, content: RecordDict, update: Update, start: Params, bound: float | None
  ) -> RecordDict:
    """The reply to that message."""
    ...
