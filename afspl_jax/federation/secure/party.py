"""A client's half of secure aggregation for one session."""

import os
from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt

from afspl_jax.federation.secure import crypto, graph
from afspl_jax.federation.secure.crypto import SEED, Session

SEALED = 2 * SEED + crypto.TAG  # bytes of a sealed pair of shares

FEWEST = 3  # clients in a round: of two, each could compute the other's update from the sum
_MOST = 1 << 14  # clients that a client accepts; to compute their degree takes a second


class PartyError(ValueError):
  """The server asks a client for something that the protocol or its settings do not allow."""


class Rules(NamedTuple):
  """What a federation has agreed on; a client uses its own settings, not the server's."""

  threshold: float  # config's `secure.threshold`
  neighbours: int = 0  # config's `secure.neighbours`


class Keys(NamedTuple):
  """The public side of a client's secrets in a session, KEY bytes each."""

  mask: bytes  # public key, for the mask with each neighbour
  seal: bytes  # public key, for messages between neighbours
  own: bytes  # commitment to the seed of the self mask


class _Stage(IntEnum):
  NEW, ADVERTISED, SHARED, MASKED, DONE = range(5)


class Party:
  """One client in one session: each stage once and in order; secrets are only in memory.

  Args:
    session: the server's.
    rules: the client's own settings.
  """

  def __init__(self, session: Session, rules: Rules):
    self.session, self._rules = session, rules
    self._stage = _Stage.NEW
    self.clients = 0  # in the round, once it is known
    self._number, self._threshold = -1, 0
    self._peers: dict[int, Keys] = {}
    self._held: dict[int, tuple[bytes, bytes]] = {}  # neighbours' shares: of mask key, of seed

  def advertise(self) -> Keys:
    """Makes the session's secrets, and returns their public side."""
    self._begin(_Stage.ADVERTISED)
    self._mask_seed, self._self_seed = os.urandom(SEED), os.urandom(SEED)
    self._mask_key = crypto.private_key(self._mask_seed, self.session)
    self._seal_key = crypto.private_key(os.urandom(SEED), self.session)
    self._shown = Keys(
      crypto.public_bytes(self._mask_key),
      crypto.public_bytes(self._seal_key),
      commitment(self._self_seed, self.session),
    )
    self._stage = _Stage.ADVERTISED
    return self._shown

  def share(self, number: int, clients: int, peers: Mapping[int, Keys]) -> dict[int, bytes]:
    """Splits the secrets among this client and its neighbours.

    Args:
      number: of this client in the round.
      clients: in the round, numbered from 0.
      peers: the public keys of its neighbours.

    Returns:
      For each neighbour its sealed shares.

    Raises:
      PartyError: too few clients or neighbours, or keys that are not all different.
    """
    self._begin(_Stage.SHARED)
    if clients < FEWEST:
      raise PartyError(f"expected at least {FEWEST} clients in the round; got {clients}")
    if clients > _MOST:
      raise PartyError(f"expected at most {_MOST} clients in the round; got {clients}")
    neighbours = graph.degree(clients, *self._rules)
    if len(peers) != neighbours:
      raise PartyError(
        f"expected {neighbours} neighbours among {clients} clients (secure.threshold,"
        f" secure.neighbours); got {len(peers)}"
      )
    if number in peers or not all(0 <= each < clients for each in (number, *peers)):
      raise PartyError(f"expected other clients' numbers below {clients}; got {sorted(peers)}")
    shown = [key for keys in (self._shown, *peers.values()) for key in keys]
    if len(set(shown)) < len(shown):
      raise PartyError("expected different keys of all neighbours; got one key twice")
    self.clients, self._number, self._peers = clients, number, dict(peers)
    self._threshold = graph.needed(neighbours, self._rules.threshold)
    seeds = self._mask_seed, self._self_seed
    split = [crypto.split_seed(seed, self._threshold, neighbours + 1) for seed in seeds]
    shares = dict(zip(holders(number, peers), zip(*split, strict=True), strict=True))
    self._held = {number: shares.pop(number)}
    out = {}
    for peer, (of_mask, of_own) in shares.items():
      key = self._sealing(number, peer)
      out[peer] = crypto.seal(key, of_mask + of_own, self.session, number, peer)
    self._stage = _Stage.SHARED
    return out

  def mask(
    self, words: UInt[np.ndarray, " m"], sealed: Mapping[int, bytes]
  ) -> UInt[np.ndarray, " m"]:
    """The client's integers plus its self mask and one mask with each neighbour that shared.

    Args:
      words: modulo 2**32 or 2**64.
      sealed: what neighbours sealed for this client.

    Raises:
      PartyError: too few or unknown neighbours, or shares that their sender did not seal.
    """
    self._begin(_Stage.MASKED)
    if not sealed.keys() <= self._peers.keys():
      raise PartyError(f"expected shares of neighbours; got {sorted(sealed)}")
    self._expect_enough(len(sealed))
    for peer, text in sealed.items():
      try:
        plain = crypto.unseal(self._sealing(peer), text, self.session, peer, self._number)
      except crypto.CryptoError as error:
        raise PartyError(f"shares of client {peer}: {error}") from error
      if len(plain) != 2 * SEED:
        raise PartyError(f"shares of client {peer}: expected {2 * SEED} bytes; got {len(plain)}")
      self._held[peer] = plain[:SEED], plain[SEED:]
    total = words.copy()
    crypto.add_mask(total, self_mask(self._self_seed, self.session))
    for peer in sealed:
      other = self._peers[peer].mask
      key, sign = pair_mask(self._mask_key, other, self.session, self._number, peer)
      crypto.add_mask(total, key, sign)
    self._stage = _Stage.MASKED
    return total

  def unmask(self, survivors: Collection[int], lost: Collection[int]) -> dict[int, bytes]:
    """The shares with which the server removes the masks; all secrets are deleted.

    Args:
      survivors: neighbours whose update is in the sum.
      lost: neighbours that shared, but whose update is not in it.

    Returns:
      A share of the self-mask seed of this client and each survivor, and a share of the mask-key
      seed of each lost one: never both of one client.

    Raises:
      PartyError: a neighbour is both, neither or unknown, or there are too few survivors.
    """
    self._begin(_Stage.DONE)
    held, self._held = self._held, {}
    del self._mask_seed, self._self_seed, self._mask_key, self._seal_key
    both = sorted(set(survivors) & set(lost))
    if both:
      raise PartyError(f"expected clients to be survivors or lost; got {both} as both")
    named = [self._number, *survivors, *lost]
    if sorted(named) != sorted(held):
      raise PartyError(
        f"expected each neighbour that shared to be a survivor or lost, once; got {named[1:]}"
      )
    self._expect_enough(len(survivors))
    return {peer: held[peer][0] for peer in lost} | {
      peer: held[peer][1] for peer in (self._number, *survivors)
    }

  def _begin(self, stage: _Stage) -> None:
    """Rejects any stage but the next; a session ends with the first stage that fails."""
    before, self._stage = self._stage, _Stage.DONE
    if stage != before + 1:
      raise PartyError(
        f"{stage.name.lower()}: expected each stage of a session once and in order; got it after"
        f" {before.name.lower()}"
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
    info = self.session.info("sealing key", sender, receiver)
    try:
      return crypto.agree(self._seal_key, other, info)
    except crypto.CryptoError as error:
      raise PartyError(str(error)) from error


def holders(client: int, neighbours: Collection[int]) -> list[int]:
  """The clients that hold the shares of a client's secrets, by place."""
  return sorted({client, *neighbours})


def commitment(self_seed: bytes, session: Session) -> bytes:
  """A commitment to the seed of a client's self mask, which does not reveal the seed."""
  return crypto.derive(self_seed, session.info("commitment"))


def self_mask(self_seed: bytes, session: Session) -> bytes:
  """The key of a client's self mask."""
  return crypto.derive(self_seed, session.info("own mask"))


def pair_mask(
  key: crypto.X25519PrivateKey, peer_key: bytes, session: Session, client: int, peer: int
) -> tuple[bytes, int]:
  """The key of the mask of two clients, and its sign at `client`; `peer` has the opposite sign.

  Raises:
    PartyError: the peer's key is invalid.
  """
  try:
    agreed = crypto.agree(
      key, peer_key, session.info("pair mask", min(client, peer), max(client, peer))
    )
  except crypto.CryptoError as error:
    raise PartyError(f"client {peer}: {error}") from error
  return agreed, 1 if client < peer else -1
