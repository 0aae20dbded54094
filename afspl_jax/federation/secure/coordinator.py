"""The server's half of secure aggregation, for one session: who shares with whom, and the sum."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from afspl_jax.federation.secure import crypto, graph
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.party import (
  FEWEST,
  Keys,
  Rules,
  commitment,
  holders,
  own_mask,
  pair_mask,
)
from afspl_jax.storage.client_status import Outcome, Status


class Aborted(ValueError):
  """The round cannot be finished; what was masked stays so."""


class Introduction(NamedTuple):
  """What a client is told before it shares."""

  number: int  # its own
  clients: int  # in the round
  peers: dict[int, Keys]  # its neighbours, by number


class Question(NamedTuple):
  """What a client is asked at the end: its neighbours that shared, by number."""

  survivors: list[int]  # whose update came
  lost: list[int]  # whose did not


class Coordinator:
  """Takes the clients through a session; each stage goes on with those that did the one before.

  Args:
    session: a new one.
    rules: the federation's.
    fewest: updates without which there is no sum; never less than FEWEST.
  """

  def __init__(self, session: Session, rules: Rules, fewest: int = FEWEST):
    self.session = session
    self.left_out: dict[str, Status] = {}  # clients that the session goes on without: why
    self._rules, self._fewest = rules, max(FEWEST, fewest)
    self._names: list[str] = []  # by number
    self._keys: dict[int, Keys] = {}
    self._near: dict[int, tuple[int, ...]] = {}
    self._threshold = 0
    self._shared: set[int] = set()
    self._survivors: set[int] = set()

  def introduce(self, keys: Mapping[str, Keys]) -> dict[str, Introduction]:
    """Numbers the clients and joins them to a graph.

    Raises:
      Aborted: too few have keys that can be used.
    """
    times = Counter(key for each in keys.values() for key in each)
    for name, each in keys.items():
      if any(times[key] > 1 for key in each):
        self.left_out[name] = Status(Outcome.REJECTED, "expected keys of its own; got another's")
      elif not (crypto.is_public(each.mask) and crypto.is_public(each.seal)):
        self.left_out[name] = Status(Outcome.REJECTED, "expected public keys; got what is none")
    self._names = sorted(keys.keys() - self.left_out.keys())
    count = len(self._names)
    self._expect(count, self._fewest, "clients with keys")
    self._keys = {number: keys[name] for number, name in enumerate(self._names)}
    neighbours = graph.degree(count, *self._rules)
    self._threshold = graph.needed(neighbours, self._rules.threshold)
    self._near = graph.connect(range(count), neighbours)
    return {
      name: Introduction(number, count, {peer: self._keys[peer] for peer in self._near[number]})
      for number, name in enumerate(self._names)
    }

  def forward(self, sealed: Mapping[str, Mapping[int, bytes]]) -> dict[str, dict[int, bytes]]:
    """Gives every client what its neighbours sealed for it.

    Args:
      sealed: of those that shared, what each sealed for its neighbours, by their numbers.

    Raises:
      Aborted: too few clients are left that have enough neighbours.
    """
    given = {self._names.index(name): texts for name, texts in sealed.items()}
    self._shared = set(given)
    while lonely := {i for i in self._shared if self._around(i, self._shared) < self._threshold}:
      self._shared -= lonely  # and so may others be then
    for number in sorted(given.keys() - self._shared):
      self.left_out[self._names[number]] = Status(
        Outcome.DROPPED, f"fewer than {self._threshold} of it and its neighbours shared"
      )
    self._expect(len(self._shared), self._fewest, "clients that share masks")
    return {
      self._names[number]: {
        peer: given[peer][number] for peer in self._near[number] if peer in self._shared
      }
      for number in sorted(self._shared)
    }

  def ask(self, masked: Collection[str]) -> dict[str, Question]:
    """What to ask whom, once it is known whose masked updates are in the sum.

    Raises:
      Aborted: too few came, in all or near one client, for the masks to be taken off.
    """
    self._survivors = {self._names.index(name) for name in masked}
    self._expect(len(self._survivors), self._fewest, "masked updates")
    for number in sorted(self._shared):
      around = self._around(number, self._survivors)
      if number in self._survivors or around:
        what = f"of {self._names[number]} and its neighbours to send masked updates"
        self._expect(around, self._threshold, what)
    return {
      self._names[number]: Question(
        [peer for peer in self._near[number] if peer in self._survivors],
        [peer for peer in self._near[number] if peer in self._shared - self._survivors],
      )
      for number in sorted(self._survivors)
    }

  def unmask(self, total: np.ndarray, shares: Mapping[str, Mapping[int, bytes]]) -> None:
    """Takes the masks off the sum of the masked updates.

    Args:
      total: words; changed in place.
      shares: what those that answered gave, by the number of the client that it is of.

    Raises:
      Aborted: too few answered, or their shares do not give a client's secret.
    """
    given = {self._names.index(name): of for name, of in shares.items()}
    liars: set[int] = set()
    for number in sorted(self._survivors):
      seed = self._recover(number, given, liars, self._commitment, self._keys[number].own)
      crypto.add_mask(total, own_mask(seed, self.session), -1)
    for number in sorted(self._shared - self._survivors):
      near = [peer for peer in self._near[number] if peer in self._survivors]
      if not near:  # nobody added a mask with it
        continue
      seed = self._recover(number, given, liars, self._public, self._keys[number].mask)
      private = crypto.private_key(seed, self.session)
      for peer in near:
        crypto.add_mask(
          total, *pair_mask(private, self._keys[peer].mask, self.session, number, peer)
        )
    for liar in liars:
      self.left_out[self._names[liar]] = Status(
        Outcome.REJECTED, "a share that it gave is not the one it was given"
      )

  def _recover(
    self,
    number: int,
    given: Mapping[int, Mapping[int, bytes]],
    liars: set[int],
    show: Callable[[bytes], bytes],
    shown: bytes,
  ) -> bytes:
    """The seed of what a client has shown, from the shares that were given of it.

    Adds to `liars` one whose share is false, where there is another to take in its place.
    """
    places = {holder: at for at, holder in enumerate(holders(number, self._near[number]))}
    found = {
      holder: given[holder][number]
      for holder in places
      if holder in given and number in given[holder] and holder not in liars
    }
    what = f"shares of {self._names[number]}'s secret"
    self._expect(len(found), self._threshold, what)
    first, spare = list(found)[: self._threshold], list(found)[self._threshold :]
    for wrong in (None, *(first if spare else ())):
      chosen = first if wrong is None else [*(h for h in first if h != wrong), spare[0]]
      seed = crypto.combine({places[holder]: found[holder] for holder in chosen})
      if show(seed) == shown:
        liars |= set() if wrong is None else {wrong}
        return seed
    raise Aborted(f"{what} do not fit together: it, or some that gave them, sent false ones")

  def _commitment(self, seed: bytes) -> bytes:
    return commitment(seed, self.session)

  def _public(self, seed: bytes) -> bytes:
    return crypto.public_bytes(crypto.private_key(seed, self.session))

  def _around(self, number: int, among: Collection[int]) -> int:
    """How many of a client and its neighbours are among these."""
    return sum(holder in among for holder in holders(number, self._near[number]))

  def _expect(self, found: int, least: int, what: str) -> None:
    if found < least:
      raise Aborted(f"expected at least {least} {what}; got {found}")
