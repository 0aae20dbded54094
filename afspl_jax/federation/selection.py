"""Which sites train in a round."""

import hashlib
from collections.abc import Iterable


def select(sites: Iterable[str], count: int, seed: int, round: int) -> list[str]:
  """Draws `count` sites uniformly without replacement.

  A site's rank is a hash of (seed, round, site) alone: every role, host and library version
  draws the same, and the result does not depend on the order in which sites connected.

  Args:
    sites: names of all sites.
    count: sites to draw.
    seed: the experiment's seed.
    round: the round.

  Returns:
    The names drawn, sorted.

  Raises:
    ValueError: fewer sites than `count`, or `count` below 1.
  """
  names = set(sites)
  if not 1 <= count <= len(names):
    raise ValueError(f"fed.clients_per_round: expected 1 to {len(names)} (sites); got {count}")
  ranked = sorted(names, key=lambda s: hashlib.sha256(f"{seed}/{round}/{s}".encode()).digest())
  return sorted(ranked[:count])
