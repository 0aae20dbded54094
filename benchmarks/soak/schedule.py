"""What is done to which process, and when: all of it follows from a seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SERVER, SUPERLINK = "server", "SuperLink"  # names of processes; a site's host has the site's name
SITE, SUPERNODE = "site", "SuperNode"  # roles of the others
ROLES = (SERVER, SUPERLINK, SITE, SUPERNODE)

_WINDOW = 6.0  # seconds after the end of a round, about the length of the next one
_KILL = 0.6  # share of disturbances that kill; the others stop a process and let it go on
_LONG = 0.3  # share of stops that outlast the deadline of a round
_SHORT_STOP, _LONG_STOP = (2.0, 15.0), (35.0, 60.0)  # seconds, from and to
_SUPERLINK_STOP = 75.0  # seconds of a long stop: beyond the minute after which leases expire


class Disturbance(NamedTuple):
  """A signal to one process."""

  round: int  # finished last
  delay: float  # seconds after the end of that round
  process: str  # its name
  stop: float  # seconds between SIGSTOP and SIGCONT; 0: SIGKILL


def supernode_of(site: str) -> str:
  """The name of a site's SuperNode."""
  return f"{site} {SUPERNODE}"


def role_of(process: str) -> str:
  """The role of the process with a name."""
  if process in (SERVER, SUPERLINK):
    return process
  return SUPERNODE if process.endswith(f" {SUPERNODE}") else SITE


def disturbances(
  seed: int, round: int, rate: float, sites: Sequence[str], roles: Sequence[str] = ROLES
) -> list[Disturbance]:
  """The disturbances that follow a round; they depend on nothing but the arguments.

  Args:
    seed: of the soak.
    round: the finished round.
    rate: disturbances in a round, on average.
    sites: names of all sites.
    roles: of the processes that are disturbed; each as often, so that the server is hit as often as
      all sites together.

  Returns:
    Them, by delay.
  """
  rng = np.random.default_rng((seed, round))
  drawn = [_draw(rng, round, sites, roles) for _ in range(rng.poisson(rate))]
  return sorted(drawn, key=lambda each: each.delay)


def _draw(
  rng: np.random.Generator, round: int, sites: Sequence[str], roles: Sequence[str]
) -> Disturbance:
  delay = float(rng.uniform(0, _WINDOW))
  site = sites[int(rng.integers(len(sites)))]
  role = roles[int(rng.integers(len(roles)))]
  process = {SITE: site, SUPERNODE: supernode_of(site)}.get(role, role)
  if rng.random() < _KILL:
    return Disturbance(round, delay, process, 0.0)
  if rng.random() >= _LONG:
    stop = float(rng.uniform(*_SHORT_STOP))
  else:
    stop = _SUPERLINK_STOP if process == SUPERLINK else float(rng.uniform(*_LONG_STOP))
  return Disturbance(round, delay, process, stop)
