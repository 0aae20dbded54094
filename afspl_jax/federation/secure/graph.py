"""The graph of clients that share masks and secrets: each has `degree` neighbours.

Bell et al. 2020, section 3.2: a cycle in random order, in which each node is connected to the
nearest ones on both sides. A few dozen neighbours are as safe as all clients, and a client's work
grows with their number.
"""

import math
import secrets
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

from scipy.stats import hypergeom

COLLUDING = 0.2  # share of a round's clients that may collude with the server
DROPPING = 0.2  # share of a round's clients that may drop out
INSECURE = 2.0**-40  # probability, over the order, that these learn more than the sum
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


def connect(clients: Sequence[int], neighbours: int) -> dict[int, tuple[int, ...]]:
  """Each client's neighbours, sorted; the order comes from the operating system's randomness."""
  order = list(clients)
  secrets.SystemRandom().shuffle(order)
  if neighbours >= len(order) - 1:
    near = {i: set(order) - {i} for i in order}
  else:
    steps = [step for k in range(1, neighbours // 2 + 1) for step in (k, -k)]
    near = {i: {order[(at + s) % len(order)] for s in steps} for at, i in enumerate(order)}
  return {client: tuple(sorted(near[client])) for client in sorted(order)}


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
  # Too many neighbours of one client collude: with the server they have both of its secrets.
  exposed = clients * hypergeom.sf(shares - 1, clients - 1, colluding, neighbours)
  # Too few neighbours of one client stay.
  failing = clients * hypergeom.cdf(shares - 1, clients - 1, clients - 1 - lost, neighbours)
  return bool(
    exposed + parted(clients, neighbours, colluding + lost) <= INSECURE and failing <= FAILING
  )
