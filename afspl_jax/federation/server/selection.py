"""Which sites train in a round.

Randomness comes from a hash of (seed, round, site) only: every role, host and library version
selects the same sites, and the order in which they connect has no influence. Only the
sample of "poisson" is secret: who knows the seed must not know who took part.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

_CANDIDATES = 2  # power of choice: candidates per site to select, d / m


class Candidate(NamedTuple):
  """What the server knows about a site."""

  num_examples: int  # from 0 on
  loss: float | None  # of its last training; None: it has not trained yet


_Sites = Mapping[str, Candidate]


def poisson_sample(sites: Iterable[str], probability: float, key: int, round: int) -> list[str]:
  """Every site independently with the same probability: `fed.selection=poisson`.

  Args:
    sites: their names.
    probability: of each.
    key: kept secret where the sample must be.
    round: the round.

  Returns:
    The chosen names, sorted; there may be none.
  """
  below = probability * 2**256
  return sorted(s for s in sites if int.from_bytes(_hash(s, key, round), "big") < below)


def select(
  method: str, sites: Mapping[str, Candidate], count: int, seed: int, round: int
) -> list[str]:
  """Chooses `count` sites without replacement.

  Args:
    method: the experiment's `fed.selection`, one of METHODS.
    sites: all sites, by name.
    count: sites to choose.
    seed: the experiment's seed.
    round: the round.

  Returns:
    The chosen names, sorted.

  Raises:
    ValueError: fewer sites than `count`, or `count` below 1.
  """
  method_of = _METHODS[method]
  if not 1 <= count <= len(sites):
    raise ValueError(f"fed.clients_per_round: expected 1 to {len(sites)} (sites); got {count}")
  return sorted(method_of(sites, count, seed, round))


def _hash(site: str, seed: int, round: int) -> bytes:
  return hashlib.sha256(f"{seed}/{round}/{site}".encode()).digest()


def _uniform(sites: _Sites, count: int, seed: int, round: int) -> list[str]:
  """Every site with equal probability: the first by rank of their hashes."""
  return sorted(sites, key=lambda site: _hash(site, seed, round))[:count]


def _size(sites: _Sites, count: int, seed: int, round: int) -> list[str]:
  """One after the other, each with probability by its number of examples among those left.

  Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", algorithm A: the
  highest u^(1/w) for a uniform u of each site, here as the lowest -log(u) / w. With equal
  sizes it chooses as `_uniform` does. A site without examples comes after all others.
  """

  def key(site: str) -> tuple[float, bytes]:
    digest = _hash(site, seed, round)
    rest = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 1 - u, in [0, 1)
    examples = sites[site].num_examples
    return -math.log1p(-rest) / examples if examples else math.inf, digest

  return sorted(sites, key=key)[:count]


def _round_robin(sites: _Sites, count: int, seed: int, round: int) -> list[str]:
  """The next `count` names in a circle: over any rounds, turns differ by at most one."""
  names, first = sorted(sites), seed + round * count
  return [names[(first + i) % len(names)] for i in range(count)]


def _power_of_choice(sites: _Sites, count: int, seed: int, round: int) -> list[str]:
  """Of twice as many candidates, chosen by size, those with the highest losses.

  Cho, Wang and Joshi 2020, "Client Selection in Federated Learning: Convergence Analysis and
  Power-of-Choice Selection Strategies", in the variant rpow-d, which asks no site for its loss but
  takes the last one that it reported, and infinity for a site that has reported none. d = 2 m is
  among the paper's choices; more candidates converge faster, and to a more biased model.
  """
  candidates = _size(sites, min(len(sites), _CANDIDATES * count), seed, round)

  def rank(site: str) -> tuple[float, bytes]:
    loss = sites[site].loss
    return -math.inf if loss is None else -loss, _hash(site, seed, round)

  return sorted(candidates, key=rank)[:count]


_METHODS: dict[str, Callable[[_Sites, int, int, int], list[str]]] = {
  "uniform": _uniform,
  "size": _size,
  "round_robin": _round_robin,
  "power_of_choice": _power_of_choice,
}
METHODS = tuple(_METHODS)
