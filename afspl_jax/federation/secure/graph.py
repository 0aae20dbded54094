"""The graph of clients that share masks and secrets: each has `degree` neighbours.

Bell et al. 2020, section 3.2: a cycle in random order, in which each node is connected to the
nearest ones on both sides. A few dozen neighbours are as safe as all clients, and a client's work
grows with their number.

The order is a hash of the clients' signed keys (members.with_view): every client computes the
graph itself, and a server cannot put its accomplices around one. It can try other keys of its
accomplices until it likes the order; the bounds allow for GRAPHS attempts.
"""

import hashlib
import math
from collections.abc import Collection
from fractions import Fraction
from functools import cache, lru_cache

from scipy.stats import hypergeom

COLLUDING = 0.2  # share of a round's clients that may collude with the server
DROPPING = 0.2  # share of a round's clients that may drop out
INSECURE = 2.0**-40  # probability, over the order, that these learn more than the sum
GRAPHS = 2.0**60  # orders that a server may try
FEWEST = 3  # clients in a sum: of two, each could compute the other's update from the sum
FAILING = 2.0**-10  # probability that a round fails though no more than these drop out; it can
# be repeated

_ALL_UP_TO = 32  # clients; up to here the graph is complete, which costs a few milliseconds


@cache
def degree(clients: int, threshold: float, neighbours: int = 0) -> int:
  """The number of neighbours of each client.

  Args:
    clients: in the round.
    threshold: config's `secure.threshold`.
    neighbours: config's `secure.neighbours`.

  Returns:
    The given number, made even, or the smallest safe one; at most all other clients.
  """
  everyone = clients - 1
  if neighbours:
    return min(neighbours + neighbours % 2, everyone)
  if clients <= _ALL_UP_TO:
    return everyone
  return next((k for k in range(2, everyone, 2) if _is_safe(clients, k, threshold)), everyone)


def needed(neighbours: int, threshold: float) -> int:
  """How many of a client and its neighbours must stay: this many shares give a secret."""
  return math.ceil(Fraction(str(threshold)) * (neighbours + 1))


def holders(client: int, neighbours: Collection[int]) -> list[int]:
  """The clients that hold the shares of a client's secrets, by place."""
  return sorted({client, *neighbours})


def signers(clients: int, threshold: float) -> int:
  """How many of a round's clients must sign the same survivors before masks are removed.

  A client signs once in a session. Two sets with so many signatures have an honest signer in common
  if up to COLLUDING of the clients, rounded down, sign both: Bonawitz et al. 2017, section 6.2.
  And in a complete graph, the clients that did not sign a set, with those that collude, have too
  few shares for a secret.
  """
  colluding, shares = math.floor(Fraction(str(COLLUDING)) * clients), needed(clients - 1, threshold)
  return max(shares, (clients + colluding) // 2 + 1, clients + colluding - shares + 1)


def is_unanimous(clients: int, neighbours: int) -> bool:
  """Whether the set of all clients needs no signatures, because any other set needs them.

  A client that gives shares for all clients as survivors never signs another set. In a complete
  graph, those that did not sign another set have too few shares (`signers`).
  """
  return neighbours >= clients - 1


@lru_cache(2)  # all clients of a process have the same graph
def connect(clients: int, neighbours: int, seed: bytes) -> dict[int, tuple[int, ...]]:
  """Each client's neighbours, sorted, in the graph of a seed."""
  order = sorted(range(clients), key=lambda i: hashlib.sha256(b"%b|%d" % (seed, i)).digest())
  if neighbours >= clients - 1:
    near = {i: set(order) - {i} for i in order}
  else:
    steps = [step for k in range(1, neighbours // 2 + 1) for step in (k, -k)]
    near = {i: {order[(at + s) % clients] for s in steps} for at, i in enumerate(order)}
  return {client: tuple(sorted(near[client])) for client in range(clients)}


def parted(clients: int, neighbours: int, others: int) -> float:
  """An upper bound on the probability that the graph without `others` clients is disconnected.

  The sum of each part would then be known. It takes two gaps of `neighbours` / 2 others in the
  cycle; there are fewer pairs of gaps than pairs of clients.
  """
  if others < neighbours:
    return 0.0
  places = math.comb(clients - neighbours, others - neighbours)
  return float(math.comb(clients, 2) * Fraction(places, math.comb(clients, others)))


def _is_safe(clients: int, neighbours: int, threshold: float) -> bool:
  """Whether both probabilities are within their bounds, if clients drop out and collude
  independently of the order."""
  colluding, lost = math.ceil(COLLUDING * clients), math.ceil(DROPPING * clients)
  shares = needed(neighbours, threshold)
  # Among the shares that give a secret of one client, fewer than FEWEST are of honest clients. With
  # `shares` colluding ones both of its secrets would be known. With fewer, a server that chooses
  # who drops out can part the graph, but at least FEWEST honest clients stay in every part.
  exposed = clients * hypergeom.sf(shares - FEWEST, clients - 1, colluding, neighbours)
  # Too few neighbours of one client stay.
  failing = clients * hypergeom.cdf(shares - 1, clients - 1, clients - 1 - lost, neighbours)
  insecure = GRAPHS * exposed + parted(clients, neighbours, colluding + lost)
  return bool(insecure <= INSECURE and failing <= FAILING)
