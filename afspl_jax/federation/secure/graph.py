"""Who shares masks and secrets with whom: each client with `degree` others.

Bell et al. 2020, section 3.2: the nodes of a cycle in random order, each joined to the nearest on
both sides. A few dozen neighbours are as safe as all, and the work of a client grows with them.
"""

import math
import secrets
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

from scipy.stats import hypergeom

COLLUDING = 0.2  # share of a round's clients that may tell the server all they know
DROPPING = 0.2  # share of a round's clients that may be lost in it
INSECURE = 2.0**-40  # probability, over the order, that these colluding learn more than the sum
FAILING = 2.0**-10  # probability that a round fails though no more than these are lost; it may
# be tried again

_ALL_UP_TO = 32  # clients; the graph of so few is complete: a few milliseconds buy every margin


@cache
def degree(clients: int, threshold: float, neighbours: int = 0) -> int:
  """How many neighbours each client has.

  Args:
    clients: in the round.
    threshold: config's `secure.threshold`.
    neighbours: config's `secure.neighbours`.

  Returns:
    The even number that is asked for, or is the least that is safe; at most all others.
  """
  everyone = clients - 1
  if neighbours:
    return min(neighbours + neighbours % 2, everyone)
  if clients <= _ALL_UP_TO:
    return everyone
  return next((k for k in range(2, everyone, 2) if _is_safe(clients, k, threshold)), everyone)


def needed(neighbours: int, threshold: float) -> int:
  """How many of a client and its neighbours must stay: as many shares give a secret."""
  return math.ceil(Fraction(str(threshold)) * (neighbours + 1))


def connect(clients: Sequence[int], neighbours: int) -> dict[int, tuple[int, ...]]:
  """Each client's neighbours, sorted; in an order drawn anew from the operating system's chance."""
  order = list(clients)
  secrets.SystemRandom().shuffle(order)
  if neighbours >= len(order) - 1:
    near = {i: set(order) - {i} for i in order}
  else:
    steps = [step for k in range(1, neighbours // 2 + 1) for step in (k, -k)]
    near = {i: {order[(at + s) % len(order)] for s in steps} for at, i in enumerate(order)}
  return {client: tuple(sorted(near[client])) for client in sorted(order)}


def parted(clients: int, neighbours: int, others: int) -> float:
  """At most so probable it is that all but some `others` fall into two parts.

  The sums of both would be known. It takes two gaps of `neighbours` / 2 others in the cycle: there
  are fewer pairs of places than pairs of clients.
  """
  if others < neighbours:
    return 0.0
  places = math.comb(clients - neighbours, others - neighbours)
  return float(math.comb(clients, 2) * Fraction(places, math.comb(clients, others)))


def _is_safe(clients: int, neighbours: int, threshold: float) -> bool:
  """Whether both probabilities are within their bounds, for any clients lost and colluding that
  were not picked by the order."""
  colluding, lost = math.ceil(COLLUDING * clients), math.ceil(DROPPING * clients)
  shares = needed(neighbours, threshold)
  # Too many of one client's neighbours collude: they and the server have both of its secrets.
  exposed = clients * hypergeom.sf(shares - 1, clients - 1, colluding, neighbours)
  # Too few of one client's neighbours stay.
  failing = clients * hypergeom.cdf(shares - 1, clients - 1, clients - 1 - lost, neighbours)
  return bool(
    exposed + parted(clients, neighbours, colluding + lost) <= INSECURE and failing <= FAILING
  )
