"""A client's half of secure aggregation for one session."""

import os
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt

from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.secure import crypto, graph
from afspl_jax.federation.secure.crypto import SEED, Session
from afspl_jax.federation.secure.graph import FEWEST, holders
from afspl_jax.federation.secure.identity import Identity
from afspl_jax.federation.secure.masks import commitment, pair_mask, self_mask
from afspl_jax.federation.secure.members import (
  SHARED,
  SURVIVORS,
  Keys,
  Member,
  expect_members,
  member_of,
  names_digest,
  sign_set,
  with_view,
)

SEALED = 2 * SEED + crypto.TAG  # bytes of a sealed pair of shares


class Rules(NamedTuple):
  """What a federation has agreed on; a client uses its own settings, not the server's."""

  threshold: float  # config's `secure.threshold`
  neighbours: int = 0  # config's `secure.neighbours`
  fewest: int = (
    FEWEST  # clients in a round and in a sum; config's `fed.min_replies` if it is larger
  )


class Forwarded(NamedTuple):
  """What the server sends to a client when all have shared their secrets."""

  shared: Collection[int]  # numbers of all clients that shared
  sealed: Mapping[int, bytes]  # what the neighbours among them sealed for the client


class Masked(NamedTuple):
  """A client's masked integers, and its signature over the clients that it knows to have shared."""

  words: UInt[np.ndarray, " m"]
  signature: bytes


class _Stage(IntEnum):
  NEW, ADVERTISED, SHARED, MASKED, CONFIRMED, DONE = range(6)


class Party:
  """One client in one session: each stage once and in order; secrets are only in memory.

  Args:
    session: the server's.
    rules: the client's own settings.
    identity: of the client's site.
    summed: the set of sites (members.names_digest) whose sum in this round the client has helped to
      reveal in an earlier session; None: there was none.
  """

  def __init__(
    self, session: Session, rules: Rules, identity: Identity, summed: bytes | None = None
  ):
    self.session, self.summed, self._rules, self._identity = session, summed, rules, identity
    self._stage = _Stage.NEW
    self._members: Sequence[Member] = ()  # by number
    self._number, self._threshold, self._signers, self._unanimous = -1, 0, 0, False
    self._peers: dict[int, Keys] = {}
    self._shared: frozenset[int] = frozenset()  # all clients that shared
    self._held: dict[int, tuple[bytes, bytes]] = {}  # neighbours' shares: of mask key, of seed
    self._survivors: frozenset[int] = frozenset()

  @property
  def clients(self) -> int:
    """The number of clients in the round, once it is known."""
    return len(self._members)

  def advertise(self) -> Member:
    """Makes the session's secrets, and returns their public side, signed."""
    self._begin(_Stage.ADVERTISED)
    self._mask_seed, self._self_seed = os.urandom(SEED), os.urandom(SEED)
    self._mask_key = crypto.private_key(self._mask_seed, self.session)
    self._seal_key = crypto.private_key(os.urandom(SEED), self.session)
    keys = Keys(
      crypto.public_bytes(self._mask_key),
      crypto.public_bytes(self._seal_key),
      commitment(self._self_seed, self.session),
    )
    self._shown = member_of(self._identity, self.session, keys)
    self._stage = _Stage.ADVERTISED
    return self._shown

  def share(self, number: int, members: Sequence[Member]) -> dict[int, bytes]:
    """Splits the secrets among this client and its neighbours.

    Args:
      number: of this client among the members.
      members: all clients of the round, by name.

    Returns:
      For each neighbour its sealed shares.

    Raises:
      PartyError: too few or too many clients, keys that are not all different, or not those of the
        sites in the roster.
    """
    self._begin(_Stage.SHARED)
    expect_members(members, number, self._shown, self.session, self._rules.fewest)
    others = [member for member in members if member.site != self._identity.site]
    self._identity.roster.expect({member.site: member.identity for member in others})
    clients = len(members)
    neighbours = graph.degree(clients, self._rules.threshold, self._rules.neighbours)
    self._joint = with_view(self.session, members)
    near = graph.connect(clients, neighbours, self._joint.view)[number]
    self._members, self._number = members, number
    self._peers = {peer: members[peer].keys for peer in near}
    self._threshold = graph.needed(neighbours, self._rules.threshold)
    self._signers = graph.signers(clients, self._rules.threshold)
    self._unanimous = graph.is_unanimous(clients, neighbours)
    seeds = self._mask_seed, self._self_seed
    split = [crypto.split_seed(seed, self._threshold, neighbours + 1) for seed in seeds]
    shares = dict(zip(holders(number, near), zip(*split, strict=True), strict=True))
    self._held = {number: shares.pop(number)}
    out = {}
    for peer, (of_mask, of_own) in shares.items():
      key = self._sealing(number, peer)
      out[peer] = crypto.seal(key, of_mask + of_own, self._joint, number, peer)
    self._stage = _Stage.SHARED
    return out

  def mask(self, words: UInt[np.ndarray, " m"], forwarded: Forwarded) -> Masked:
    """The client's integers plus its self mask and one mask with each neighbour that shared.

    Args:
      words: modulo 2**32 or 2**64.
      forwarded: who shared, and what neighbours sealed for this client.

    Raises:
      PartyError: too few or unknown clients, other neighbours than those that shared, or shares
        that their sender did not seal.
    """
    self._begin(_Stage.MASKED)
    self._shared, sealed = frozenset(forwarded.shared), forwarded.sealed
    if not self._number in self._shared <= set(range(self.clients)):
      raise PartyError(f"expected this client among those that shared; got {sorted(self._shared)}")
    if sealed.keys() != self._peers.keys() & self._shared:
      raise PartyError(f"expected shares of the neighbours that shared; got {sorted(sealed)}")
    self._expect_most(len(self._shared), "that share masks")
    self._expect_enough(len(sealed))
    for peer, text in sealed.items():
      try:
        plain = crypto.unseal(self._sealing(peer), text, self._joint, peer, self._number)
      except crypto.CryptoError as error:
        raise PartyError(f"shares of client {peer}: {error}") from error
      if len(plain) != 2 * SEED:
        raise PartyError(f"shares of client {peer}: expected {2 * SEED} bytes; got {len(plain)}")
      self._held[peer] = plain[:SEED], plain[SEED:]
    total = words.copy()
    crypto.add_mask(total, self_mask(self._self_seed, self.session))
    for peer in sealed:
      other = self._peers[peer].mask
      key, sign = pair_mask(self._mask_key, other, self._joint, self._number, peer)
      crypto.add_mask(total, key, sign)
    signature = sign_set(self._identity, self._joint, SHARED, self._shared)
    self._stage = _Stage.MASKED
    return Masked(total, signature)

  def confirm(self, survivors: Collection[int], signatures: Mapping[int, bytes]) -> bytes:
    """Signs the set of clients whose update is in the sum: the only one in this session.

    Args:
      survivors: their numbers.
      signatures: of this client's neighbours among them, over the clients that shared. A client
        that was shown fewer has fewer masks on its update, and is not revealed.

    Raises:
      PartyError: there are too few, unknown ones or not this client among them; a neighbour was
        shown other clients that shared; or a sum of this round over another set was revealed
        before.
    """
    self._settle(frozenset(survivors))
    if signatures.keys() != self._survivors & self._peers.keys():
      raise PartyError(
        f"expected signatures of all neighbours in the sum; got those of {sorted(signatures)}"
      )
    self._expect_signed(SHARED, self._shared, signatures)
    self._stage = _Stage.CONFIRMED
    return sign_set(self._identity, self._joint, SURVIVORS, self._survivors)

  def unmask(self, signatures: Mapping[int, bytes]) -> dict[int, bytes]:
    """The shares with which the server removes the masks; all secrets are deleted.

    Args:
      signatures: over the survivors, by number of their signer; none if all clients survived and
        this needs no signatures (graph.is_unanimous).

    Returns:
      A share of the self-mask seed of this client and each neighbour that survived, and a share of
      the mask-key seed of each one that did not: never both of one client.

    Raises:
      PartyError: too few clients signed the set that this client signed.
    """
    everyone = not signatures and self._unanimous
    if everyone:
      self._settle(frozenset(range(self.clients)))
      self._stage = _Stage.CONFIRMED
    self._begin(_Stage.DONE)
    held, self._held = self._held, {}
    del self._mask_seed, self._self_seed, self._mask_key, self._seal_key
    if not everyone:
      self._expect_signatures(signatures)
    return {of: held[of][1 if of in self._survivors else 0] for of in held}

  def _settle(self, stayed: frozenset[int]) -> None:
    """Accepts a set of survivors, for the rest of the session."""
    self._begin(_Stage.CONFIRMED)
    if not self._number in stayed <= self._shared:
      raise PartyError(
        f"expected survivors among those that shared, this client one of them; got {sorted(stayed)}"
      )
    self._expect_most(len(stayed), "in the sum")
    self._expect_enough(len(stayed & self._peers.keys()))
    names = names_digest([self._members[number].site for number in stayed])
    if self.summed not in (None, names):
      raise PartyError(
        f"round {self.session.round}: expected the sites of its sum that was revealed before; got"
        " others. The difference of two sums would reveal single sites. Bring the same sites back,"
        " or restart all sites to accept this"
      )
    self._survivors, self.summed = stayed, names

  def _expect_signatures(self, signatures: Mapping[int, bytes]) -> None:
    if not signatures.keys() <= self._survivors or len(signatures) < self._signers:
      raise PartyError(
        f"expected signatures of at least {self._signers} survivors; got {len(signatures)}"
      )
    self._expect_signed(SURVIVORS, self._survivors, signatures)

  def _expect_signed(
    self, what: str, clients: Collection[int], signatures: Mapping[int, bytes]
  ) -> None:
    for number, signature in signatures.items():
      member = self._members[number]
      if not member.has_signed(self._joint, what, clients, signature):
        raise PartyError(
          f"{member.site}: expected its signature over the {what.removeprefix('signed ')} that this"
          " site was shown; got another: the server may have shown others"
        )

  def _begin(self, stage: _Stage) -> None:
    """Rejects any stage but the next; a session ends with the first stage that fails."""
    before, self._stage = self._stage, _Stage.DONE
    if stage != before + 1:
      raise PartyError(
        f"{stage.name.lower()}: expected each stage of a session once and in order; got it after"
        f" {before.name.lower()}"
      )

  def _expect_most(self, clients: int, where: str) -> None:
    least = max(self._signers, self._rules.fewest)
    if clients < least:
      raise PartyError(
        f"expected at least {least} of {self.clients} clients {where} (secure.threshold,"
        f" fed.min_replies); got {clients}"
      )

  def _expect_enough(self, others: int) -> None:
    if others + 1 < self._threshold:
      raise PartyError(
        f"expected at least {self._threshold} of this client and its neighbours"
        f" (secure.threshold); got {others + 1}"
      )

  def _sealing(self, sender: int, receiver: int | None = None) -> bytes:
    """The key for messages from one neighbour to another; each direction has its own."""
    receiver = self._number if receiver is None else receiver
    other = self._peers[receiver if sender == self._number else sender].seal
    info = self._joint.info("sealing key", sender, receiver)
    try:
      return crypto.agree(self._seal_key, other, info)
    except crypto.CryptoError as error:
      raise PartyError(str(error)) from error
