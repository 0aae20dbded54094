"""The cryptography of secure aggregation: thin calls to `cryptography` and PyCryptodome.

Every key has one purpose: it is derived with HKDF from the purpose, the session and, if there are
two parties, both in order.
"""

from typing import NamedTuple

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED = 16  # bytes of a seed; PyCryptodome's Shamir scheme shares exactly 16
KEY = 32  # bytes of every other key, public or not
SESSION = 16  # bytes of a session's name
TAG = 16  # bytes that sealing adds

_PROTOCOL = b"afspl_jax secure aggregation 2"
_CHUNK = 1 << 18  # bytes of a mask that are made at a time; they fit into the cache


class CryptoError(ValueError):
  """An invalid key, share or sealed text."""


class Session(NamedTuple):
  """One attempt at one round; its keys are useless in any other."""

  name: bytes  # SESSION random bytes
  round: int  # from 1
  view: bytes = b""  # a hash of its members, once they are known (members.py)

  def info(self, purpose: str, *parties: int) -> bytes:
    """The purpose of a key, as bytes."""
    numbers = (self.round, *parties)
    parts = [_PROTOCOL, purpose.encode(), self.name, *(b"%d" % n for n in numbers)]
    return b"|".join([*parts, self.view] if self.view else parts)


def derive(secret: bytes, info: bytes) -> bytes:
  """A key of KEY bytes."""
  return HKDF(hashes.SHA256(), KEY, salt=None, info=info).derive(secret)


def private_key(seed: bytes, session: Session) -> X25519PrivateKey:
  """The key pair of a seed."""
  return X25519PrivateKey.from_private_bytes(derive(seed, session.info("private key")))


def public_bytes(key: X25519PrivateKey) -> bytes:
  """The public half, KEY bytes."""
  return key.public_key().public_bytes_raw()


def agree(own: X25519PrivateKey, peer: bytes, info: bytes) -> bytes:
  """The key that only the two parties can derive.

  Raises:
    CryptoError: the peer's public key is invalid, or gives every party the same key.
  """
  try:
    return derive(own.exchange(X25519PublicKey.from_public_bytes(peer)), info)
  except ValueError as error:
    raise CryptoError(f"expected a public key; got an invalid one: {error}") from error


def is_public(key: bytes) -> bool:
  """Whether a public key can be used for key agreement."""
  try:
    agree(X25519PrivateKey.generate(), key, b"")
  except CryptoError:
    return False
  return True


def seal(key: bytes, text: bytes, session: Session, sender: int, receiver: int) -> bytes:
  """Encrypts and authenticates a text; each key is used for one text."""
  return AESGCM(key).encrypt(bytes(12), text, session.info("sealed", sender, receiver))


def unseal(key: bytes, sealed: bytes, session: Session, sender: int, receiver: int) -> bytes:
  """The text.

  Raises:
    CryptoError: it was sealed with another key, for other parties or in another session, or
    changed.
  """
  try:
    return AESGCM(key).decrypt(bytes(12), sealed, session.info("sealed", sender, receiver))
  except InvalidTag:
    raise CryptoError("expected the text that its sender sealed; got another") from None


def add_mask(total: np.ndarray, key: bytes, sign: int = 1) -> None:
  """Adds the numbers of an AES-256 counter-mode stream to a vector, modulo its word size.

  Args:
    total: uint32 or uint64 `[n]`, contiguous; changed in place.
    key: KEY bytes, used for nothing else, so that the counter can start at 0.
    sign: 1 to add, -1 to subtract.
  """
  encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
  step = _CHUNK // total.itemsize
  zeros, out = bytes(_CHUNK), bytearray(_CHUNK + 15)  # OpenSSL needs the extra bytes
  combine_shares = np.add if sign > 0 else np.subtract
  for start in range(0, len(total), step):
    part = total[start : start + step]
    encryptor.update_into(memoryview(zeros)[: part.nbytes], out)
    combine_shares(part, np.frombuffer(out, total.dtype.newbyteorder("<"), len(part)), out=part)


def split_seed(seed: bytes, threshold: int, holders: int) -> list[bytes]:
  """Shares of SEED bytes: any `threshold` of them give the seed, fewer reveal nothing (Shamir)."""
  return [share for _, share in Shamir.split(threshold, holders, seed, ssss=False)]


def combine_shares(shares: dict[int, bytes]) -> bytes:
  """The seed from exactly `threshold` shares, by their place from 0."""
  numbered = [(place + 1, share) for place, share in shares.items()]
  return Shamir.combine(numbered, ssss=False)
