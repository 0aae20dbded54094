"""The keys of a client's masks, and its commitment to one of them."""

from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.secure import crypto
from afspl_jax.federation.secure.crypto import Session


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
