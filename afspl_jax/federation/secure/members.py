"""The clients of a session as all of them see each other, and what they sign.

Every signature names the session and its round, so that none is valid in another one.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from afspl_jax.federation.contracts import PartyError, is_site_name
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import Identity, is_signed

SHARED, SURVIVORS = "signed sharers", "signed survivors"  # which set a signature is over

_MOST = 1 << 14  # clients that a client accepts; to compute their degree takes a second


class Keys(NamedTuple):
  """The public side of a client's secrets in a session, KEY bytes each."""

  mask: bytes  # public key, for the mask with each neighbour
  seal: bytes  # public key, for messages between neighbours
  own: bytes  # commitment to the seed of the self mask


class Member(NamedTuple):
  """A client of a session; its number is its place among the members, by name."""

  site: str
  identity: bytes  # its long-lived public key (identity.py)
  keys: Keys
  signature: bytes  # of the identity, over session, site and keys

  def is_authentic(self, session: Session) -> bool:
    """Whether the identity signed these keys for this session."""
    return is_signed(self.identity, self.signature, _keys_text(session, self.site, self.keys))

  def has_signed(
    self, session: Session, what: str, clients: Collection[int], signature: bytes
  ) -> bool:
    """Whether a signature is this member's, over a set of clients (SHARED or SURVIVORS)."""
    return is_signed(self.identity, signature, _set_text(session, what, clients))


def member_of(identity: Identity, session: Session, keys: Keys) -> Member:
  """A site with its keys of a session, signed."""
  signature = identity.sign(_keys_text(session, identity.site, keys))
  return Member(identity.site, identity.public, keys, signature)


def sign_set(identity: Identity, session: Session, what: str, clients: Collection[int]) -> bytes:
  """A site's signature over the set of clients that shared, or whose update is in the sum."""
  return identity.sign(_set_text(session, what, clients))


def with_view(session: Session, members: Sequence[Member]) -> Session:
  """The session among exactly these members: its keys and signatures fit no other view of it."""
  view = hashlib.sha256(session.info("view"))
  for member in members:
    for part in (member.site.encode(), member.identity, b"".join(member.keys)):
      view.update(hashlib.sha256(part).digest())
  return session._replace(view=view.digest())


def expect_members(
  members: Sequence[Member], number: int, own: Member, session: Session, fewest: int
) -> None:
  """Checks the clients of a round, as a server names them to one of them.

  Args:
    members: all clients.
    number: of the client that checks.
    own: what that client has shown.
    session: the one that they have signed.
    fewest: the smallest number of clients that it accepts.

  Raises:
    PartyError: too few or too many, not each once, other keys than `own`, or a false signature.
  """
  clients = len(members)
  if not fewest <= clients <= _MOST:
    raise PartyError(
      f"expected {fewest} to {_MOST} clients in the round (fed.min_replies); got {clients}"
    )
  names = [member.site for member in members]
  if names != sorted(set(names)) or not all(map(is_site_name, names)):
    raise PartyError("expected the names of sites in order, each once; got others")
  if not 0 <= number < clients or members[number] != own:
    raise PartyError("expected this site among the clients, with the keys that it made; got others")
  shown = [key for member in members for key in (member.identity, *member.keys)]
  if len(set(shown)) < len(shown):
    raise PartyError("expected different keys of all clients; got one key twice")
  for member in members:
    if not member.is_authentic(session):
      raise PartyError(
        f"{member.site}: expected keys that its identity key signed for this session and round; got"
        " others"
      )


def names_digest(names: Collection[str]) -> bytes:
  """A hash of a set of sites."""
  digests = (hashlib.sha256(name.encode()).digest() for name in sorted(names))
  return hashlib.sha256(b"".join(digests)).digest()


def _keys_text(session: Session, site: str, keys: Keys) -> bytes:
  name = hashlib.sha256(site.encode()).digest()
  return session.info("signed keys") + name + b"".join(keys)


def _set_text(session: Session, what: str, clients: Collection[int]) -> bytes:
  return session.info(what, *sorted(clients))
