"""The cost of secure aggregation, without training: `python -m benchmarks.secure`.

Runs a whole round of the protocol in one process, with random updates. Either no client or a tenth
of the clients drop out before they send. A client's seconds are the time of one client, which
checks all signatures itself, of keys as `afspl keys site` makes them; in a simulation the clients
run one after another.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from afspl_jax.federation.secure.coordinator import Coordinator
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import Identity, is_signed
from afspl_jax.federation.secure.party import Masked, Party, Rules
from afspl_jax.federation.secure.quantise import Quantiser
from afspl_jax.federation.secure.roster import Roster


class Clock:
  """Counts the seconds of the clients and of the server."""

  def __init__(self) -> None:
    self.client = self.server = 0.0

  def at_clients(self, work: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Runs work of clients, by name."""
    out = {}
    for name, call in work.items():
      is_signed.cache_clear()  # no client checks signatures for another
      begin = time.perf_counter()
      out[name] = call()
      self.client += time.perf_counter() - begin
    return out

  def at_server(self, work: Callable[[], Any]) -> Any:
    """Runs work of the server."""
    begin = time.perf_counter()
    out = work()
    self.server += time.perf_counter() - begin
    return out


def round_of(clients: int, size: int, lost: int) -> tuple[Clock, int]:
  """Runs one round; returns its seconds and the bytes of a masked update.

  Raises:
    AssertionError: the sum differs from the sum of the updates by more than rounding.
  """
  rng = np.random.default_rng(0)
  updates = {f"site_{i:04d}": rng.normal(size=size) / size for i in range(clients)}
  rules, clock = Rules(0.6), Clock()
  session = Session(os.urandom(16), 1)
  server, roster = Coordinator(session, rules), Roster()
  identities = (Identity(n, ec.generate_private_key(ec.SECP384R1()), roster) for n in updates)
  parties = {each.site: Party(session, rules, each) for each in identities}
  quantiser = Quantiser(size, 1.0, 20, clients, 1)
  keys = clock.at_clients({n: party.advertise for n, party in parties.items()})
  introduced = clock.at_server(lambda: server.introduce(keys))
  sealed = clock.at_clients({n: partial(parties[n].share, *introduced[n]) for n in introduced})
  given = clock.at_server(lambda: server.forward(sealed))
  there = sorted(given)[lost:]

  def mask(name: str) -> Masked:
    words, signature = parties[name].mask(quantiser.encode(updates[name], 1), given[name])
    return Masked(quantiser.pack(words), signature)

  masked = clock.at_clients({n: partial(mask, n) for n in there})
  stayed = clock.at_server(lambda: server.settle({n: each.signature for n, each in masked.items()}))
  signed: dict[int, bytes] = {}
  if server.needs_signatures():
    given_signatures = clock.at_clients(
      {n: partial(parties[n].confirm, stayed, server.agreed(n)) for n in there}
    )
    signed = clock.at_server(lambda: server.confirmed(given_signatures))
  shares = clock.at_clients({n: partial(parties[n].unmask, signed) for n in there})

  def sum_up() -> np.ndarray:
    total = np.zeros(quantiser.length, quantiser.word)
    for each in masked.values():
      total += quantiser.unpack(each.words)
    server.unmask(total, shares)
    return quantiser.decode(total, len(masked)).values

  found = clock.at_server(sum_up)
  expected = sum(updates[n] for n in there)
  assert np.abs(found - expected).max() <= len(there) * quantiser.step / 2
  return clock, len(masked[there[0]].words)


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sizes", type=int, nargs="+", default=[72_708, 900_000])
  parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
  args = parser.parse_args()
  print("| clients | numbers | dropped | per client, s | server, s | bytes per update |")
  print("| --- | --- | --- | --- | --- | --- |")
  for size in args.sizes:
    for clients in args.clients:
      for lost in (0, clients // 10):
        clock, packed = round_of(clients, size, lost)
        each, server = clock.client / clients, clock.server
        print(f"| {clients} | {size:,} | {lost} | {each:.3f} | {server:.2f} | {packed:,} |")


if __name__ == "__main__":
  main()
