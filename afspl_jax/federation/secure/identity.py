"""A site's long-lived identity: the key with which it signs its part in every session.

Over a network it is the key that the site is registered with. It is an ECDSA key on a NIST curve;
its public half is written in OpenSSH's format, as in SITE.pub.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
  decode_dss_signature,
  encode_dss_signature,
)

from afspl_jax.federation.secure.roster import Roster, load_public, public_text

_ECDSA = ec.ECDSA(hashes.SHA384())
_CACHED = 1 << 12  # signatures: two of each client of a large round


class Identity:
  """A site's name, its identity key, and what it knows of the others' keys.

  Args:
    site: its name in the federation.
    key: private; it stays at the site.
    roster: the public keys of the other sites.
  """

  def __init__(self, site: str, key: ec.EllipticCurvePrivateKey, roster: Roster):
    self.site, self.roster, self._key = site, roster, key

  @cached_property
  def public(self) -> bytes:
    """The public key, in OpenSSH's format."""
    return public_text(self._key.public_key())

  def sign(self, data: bytes) -> bytes:
    """A signature of this site: its two numbers, each as long as the key."""
    size = -(-self._key.key_size // 8)
    numbers = decode_dss_signature(self._key.sign(data, _ECDSA))
    return b"".join(number.to_bytes(size, "big") for number in numbers)


def run_identities() -> Callable[[str], Identity]:
  """Identities for sites that are all in this process: made when first asked for, by name."""
  made: dict[str, Identity] = {}
  roster = Roster()

  def identity_of(site: str) -> Identity:
    if site not in made:
      made[site] = Identity(site, ec.generate_private_key(ec.SECP256R1()), roster)
    return made[site]

  return identity_of


@lru_cache(_CACHED)
def is_signed(public: bytes, signature: bytes, data: bytes) -> bool:
  """Whether a signature is of this identity key.

  The answer depends on the arguments alone. It is kept because all sites of a process check the
  same signatures: ten sites verify 20 instead of 180 in a round.
  """
  key = load_public(public)
  if key is None or public_text(key) != public:  # a key has one text, so that keys can be compared
    return False
  half = len(signature) // 2
  numbers = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
  try:
    key.verify(encode_dss_signature(*numbers), data, _ECDSA)
  except InvalidSignature:
    return False
  return True
