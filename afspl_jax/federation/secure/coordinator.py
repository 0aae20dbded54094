"""The server's half of secure aggregation for one session: the graph of clients, and the sum."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from afspl_jax.federation.secure import crypto, graph
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.graph import FEWEST, holders
from afspl_jax.federation.secure.masks import commitment, pair_mask, self_mask
from afspl_jax.federation.secure.members import SHARED, SURVIVORS, Member, with_view
from afspl_jax.federation.secure.party import Forwarded, Rules
from afspl_jax.storage.client_status import Outcome, Status


class Aborted(ValueError):
  """The round cannot be finished; its updates stay masked."""


class Introduction(NamedTuple):
  """What the server sends to a client before the client shares its secrets."""

  number: int  # of this client
  members: list[Member]  # all clients of the round, by name


class Coordinator:
  """Leads the clients through a session; each stage has the clients that completed the one before.

  Args:
    session: a new one.
    rules: the federation's.
    fewest: the smallest number of updates in a sum; at least that of the rules.
    known: identity keys of sites in earlier sessions; new ones are added.
  """

  def __init__(
    self,
    session: Session,
    rules: Rules,
    fewest: int = FEWEST,
    known: dict[str, bytes] | None = None,
  ):
    self.session = session
    self.left_out: dict[str, Status] = {}  # clients that the session continues without, and why
    self._rules, self._fewest = rules, max(rules.fewest, fewest)
    self._known = {} if known is None else known
    self._names: list[str] = []  # by number
    self._members: list[Member] = []
    self._joint = session
    self._near: dict[int, tuple[int, ...]] = {}
    self._threshold, self._signers, self._unanimous = 0, 0, False
    self._shared: set[int] = set()
    self._agreed: dict[int, bytes] = {}  # the survivors' signatures over those that shared

  def introduce(self, shown: Mapping[str, Member]) -> dict[str, Introduction]:
    """Numbers the clients and connects them in a graph.

    Args:
      shown: by name, what each client shows of itself.

    Raises:
      Aborted: too few clients have valid keys.
    """
    times = Counter(key for each in shown.values() for key in (each.identity, *each.keys))
    for name, each in shown.items():
      if any(times[key] > 1 for key in (each.identity, *each.keys)):
        self._reject(name, "expected new keys; got another client's")
      elif not (crypto.is_public(each.keys.mask) and crypto.is_public(each.keys.seal)):
        self._reject(name, "expected public keys; got other bytes")
      elif not each.is_authentic(self.session):
        self._reject(name, "expected keys that its identity key signed; got others")
      elif self._known.setdefault(name, each.identity) != each.identity:
        self._reject(name, "expected its identity key of earlier rounds; got another")
    self._names = sorted(shown.keys() - self.left_out.keys())
    self._members = [shown[name] for name in self._names]
    count = len(self._names)
    self._expect(count, self._fewest, "clients with keys")
    neighbours = graph.degree(count, self._rules.threshold, self._rules.neighbours)
    self._threshold = graph.needed(neighbours, self._rules.threshold)
    self._signers = graph.signers(count, self._rules.threshold)
    self._unanimous = graph.is_unanimous(count, neighbours)
    self._joint = with_view(self.session, self._members)
    self._near = graph.connect(count, neighbours, self._joint.view)
    return {name: Introduction(number, self._members) for number, name in enumerate(self._names)}

  def peers_of(self, name: str) -> tuple[int, ...]:
    """The numbers of a client's neighbours."""
    return self._near[self._names.index(name)]

  @property
  def _survivors(self) -> set[int]:
    return set(self._agreed)

  def forward(self, sealed: Mapping[str, Mapping[int, bytes]]) -> dict[str, Forwarded]:
    """Returns for every client who shared, and what its neighbours sealed for it.

    Args:
      sealed: by client that shared, what it sealed for each neighbour, by the neighbour's number.

    Raises:
      Aborted: too few clients are left that have enough neighbours.
    """
    received = {self._names.index(name): texts for name, texts in sealed.items()}
    self._shared = set(received)
    while lonely := {i for i in self._shared if self._around(i, self._shared) < self._threshold}:
      self._shared -= lonely  # which may make others lonely
    for number in sorted(received.keys() - self._shared):
      self.left_out[self._names[number]] = Status(
        Outcome.DROPPED, f"fewer than {self._threshold} of it and its neighbours shared"
      )
    self._expect(len(self._shared), max(self._signers, self._fewest), "clients that share masks")
    shared = sorted(self._shared)
    return {
      self._names[number]: Forwarded(
        shared, {peer: received[peer][number] for peer in self._near[number] if peer in shared}
      )
      for number in shared
    }

  def settle(self, masked: Mapping[str, bytes]) -> list[int]:
    """The numbers of the survivors: the clients whose masked updates are in the sum.

    Args:
      masked: by client that sent its masked update, its signature over the clients that shared.

    Raises:
      Aborted: too few updates arrived, in total or around one client, to remove the masks.
    """
    self._agreed = self._signed(masked, SHARED, self._shared, "clients that shared")
    self._expect(len(self._survivors), max(self._signers, self._fewest), "masked updates")
    for number in sorted(self._shared):
      around = self._around(number, self._survivors)
      if number in self._survivors or around:
        what = f"of {self._names[number]} and its neighbours to send masked updates"
        self._expect(around, self._threshold, what)
    return sorted(self._survivors)

  def needs_signatures(self) -> bool:
    """Whether the clients must sign the survivors before they give shares."""
    return not (self._unanimous and len(self._survivors) == len(self._names))

  def agreed(self, name: str) -> dict[int, bytes]:
    """The signatures of a client's neighbours among the survivors over the clients that shared."""
    return {n: self._agreed[n] for n in self.peers_of(name) if n in self._agreed}

  def confirmed(self, signatures: Mapping[str, bytes]) -> dict[int, bytes]:
    """The valid signatures over the survivors, by number of their signer.

    Raises:
      Aborted: too few clients signed.
    """
    found = self._signed(signatures, SURVIVORS, self._survivors, "survivors")
    self._expect(len(found), self._signers, "signatures over the survivors")
    return found

  def name(self, number: int) -> str:
    """The name of the client with a number."""
    return self._names[number]

  def shares_of(self, name: str) -> list[int]:
    """The numbers of the clients whose shares a client has."""
    number = self._names.index(name)
    return holders(number, [peer for peer in self._near[number] if peer in self._shared])

  def unmask(self, total: np.ndarray, shares: Mapping[str, Mapping[int, bytes]]) -> None:
    """Removes the masks from the sum of the masked updates.

    Args:
      total: words; changed in place.
      shares: by client that answered, its shares by the number of the client they belong to.

    Raises:
      Aborted: too few answered, or their shares do not give a client's secret.
    """
    received = {self._names.index(name): of for name, of in shares.items()}
    liars: set[int] = set()
    for number in sorted(self._survivors):
      seed = self._recover(
        number, received, liars, self._commitment, self._members[number].keys.own
      )
      crypto.add_mask(total, self_mask(seed, self.session), -1)
    for number in sorted(self._shared - self._survivors):
      near = [peer for peer in self._near[number] if peer in self._survivors]
      if not near:  # no update has a mask with it
        continue
      seed = self._recover(number, received, liars, self._public, self._members[number].keys.mask)
      private = crypto.private_key(seed, self.session)
      for peer in near:
        crypto.add_mask(
          total, *pair_mask(private, self._members[peer].keys.mask, self._joint, number, peer)
        )
    for liar in liars:
      self._reject(self._names[liar], "it gave another share than it was given")

  def _recover(
    self,
    number: int,
    received: Mapping[int, Mapping[int, bytes]],
    liars: set[int],
    show: Callable[[bytes], bytes],
    shown: bytes,
  ) -> bytes:
    """Recovers a client's seed from its shares, and compares it with what the client has shown.

    If one share is false and there is a spare one, its sender is added to `liars`.
    """
    places = {holder: at for at, holder in enumerate(holders(number, self._near[number]))}
    found = {
      holder: received[holder][number]
      for holder in places
      if holder in received and number in received[holder] and holder not in liars
    }
    what = f"shares of {self._names[number]}'s secret"
    self._expect(len(found), self._threshold, what)
    first, spare = list(found)[: self._threshold], list(found)[self._threshold :]
    for wrong in (None, *(first if spare else ())):
      chosen = first if wrong is None else [*(h for h in first if h != wrong), spare[0]]
      seed = crypto.combine_shares({places[holder]: found[holder] for holder in chosen})
      if show(seed) == shown:
        liars |= set() if wrong is None else {wrong}
        return seed
    raise Aborted(f"{what} do not fit together: false ones were sent")

  def _signed(
    self, signatures: Mapping[str, bytes], what: str, clients: Collection[int], text: str
  ) -> dict[int, bytes]:
    """The valid signatures over a set of clients, by number; rejects the senders of others."""
    found: dict[int, bytes] = {}
    for name, signature in sorted(signatures.items()):
      number = self._names.index(name)
      if self._members[number].has_signed(self._joint, what, clients, signature):
        found[number] = signature
      else:
        self._reject(name, f"expected its signature over the {text}; got another")
    return found

  def _commitment(self, seed: bytes) -> bytes:
    return commitment(seed, self.session)

  def _public(self, seed: bytes) -> bytes:
    return crypto.public_bytes(crypto.private_key(seed, self.session))

  def _around(self, number: int, among: Collection[int]) -> int:
    """The number of these among a client and its neighbours."""
    return sum(holder in among for holder in holders(number, self._near[number]))

  def _reject(self, name: str, reason: str) -> None:
    self.left_out[name] = Status(Outcome.REJECTED, reason)

  def _expect(self, found: int, least: int, what: str) -> None:
    if found < least:
      raise Aborted(f"expected at least {least} {what}; got {found}")
