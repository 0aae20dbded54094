"""What secure aggregation needs of cryptography: thin calls to `cryptography` and PyCryptodome.

Every key is used for one thing: it is derived with HKDF from the purpose, the session and, where
there are two, both parties in order.
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

SEED = 16  # bytes of a seed: what Shamir's scheme of PyCryptodome shares
KEY = 32  # bytes of every other key, public or not
SESSION = 16  # bytes of a session's name
TAG = 16  # bytes that sealing adds

_PROTOCOL = b"afspl_jax secure aggregation 1"
_CHUNK = 1 << 18  # bytes of a mask that are made at a time; they stay in the cache


class CryptoError(ValueError):
  """A key, a share or a sealed text that is not what it should be."""


class Session(NamedTuple):
  """One attempt at one round; keys of one are of no use in another."""

  name: bytes  # SESSION random bytes
  round: int  # from 1

  def info(self, purpose: str, *parties: int) -> bytes:
    """What a key is for, as bytes that say nothing else."""
    numbers = (self.round, *parties)
    return b"|".join([_PROTOCOL, purpose.encode(), self.name, *(b"%d" % n for n in numbers)])


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
  """The key that the owners of both keys can derive and nobody else.

  Raises:
    CryptoError: the peer's is no public key, or one that makes every agreement the same.
  """
  try:
    return derive(own.exchange(X25519PublicKey.from_public_bytes(peer)), info)
  except ValueError as error:
    raise CryptoError(f"expected a public key; got one that is of no use: {error}") from error


def is_public(key: bytes) -> bool:
  """Whether keys can be agreed on with the owner of a public key."""
  try:
    agree(X25519PrivateKey.generate(), key, b"")
  except CryptoError:
    return False
  return True


def seal(key: bytes, text: bytes, session: Session, sender: int, receiver: int) -> bytes:
  """Encrypts and authenticates the one text that the key is used for."""
  return AESGCM(key).encrypt(bytes(12), text, session.info("sealed", sender, receiver))


def unseal(key: bytes, sealed: bytes, session: Session, sender: int, receiver: int) -> bytes:
  """The text.

  Raises:
    CryptoError: it was sealed with another key, by or for another, elsewhere, or was changed.
  """
  try:
    return AESGCM(key).decrypt(bytes(12), sealed, session.info("sealed", sender, receiver))
  except InvalidTag:
    raise CryptoError("expected a text that its sender sealed; got another") from None


def add_mask(total: np.ndarray, key: bytes, sign: int = 1) -> None:
  """Adds to a vector, modulo its words, the numbers that AES-256 in counter mode makes of a key.

  Args:
    total: uint32 or uint64 `[n]`, contiguous; changed in place.
    key: KEY bytes, used for this and nothing else, which is why the counter may start at 0.
    sign: 1 to add, -1 to subtract.
  """
  encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
  step = _CHUNK // total.itemsize
  zeros, out = bytes(_CHUNK), bytearray(_CHUNK + 15)  # which OpenSSL asks for
  combine = np.add if sign > 0 else np.subtract
  for start in range(0, len(total), step):
    part = total[start : start + step]
    encryptor.update_into(memoryview(zeros)[: part.nbytes], out)
    combine(part, np.frombuffer(out, total.dtype.newbyteorder("<"), len(part)), out=part)


def split(seed: bytes, threshold: int, holders: int) -> list[bytes]:
  """Shares of a seed, of SEED bytes each: any `threshold` give it, fewer nothing (Shamir 1979)."""
  return [share for _, share in Shamir.split(threshold, holders, seed, ssss=False)]


def combine(shares: dict[int, bytes]) -> bytes:
  """The seed of exactly as many shares as it takes, by their place from 0."""
  numbered = [(place + 1, share) for place, share in shares.items()]
  return Shamir.combine(numbered, ssss=False)
