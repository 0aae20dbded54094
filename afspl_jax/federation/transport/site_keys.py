"""Keys of the sites, and the files of all keys: made here, and checked when read.

A site keeps `SITE.key` and gives `SITE.pub` to the server, which knows the site by it. What the
server's host shows is in certificates.py.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from afspl_jax.errors import UserError
from afspl_jax.storage.atomic_files import create_file

# What cryptography raises for a file that is not what it should be.
UNREADABLE = (
  ValueError,
  TypeError,
  NotImplementedError,
  UnsupportedAlgorithm,
  x509.InvalidVersion,
  x509.DuplicateExtension,
  x509.UnsupportedGeneralNameType,
)

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WHENCE = "`afspl keys` makes keys; a site also needs ca.crt, the server sites/SITE.pub"
_LOG = logging.getLogger(__name__)


class SiteKey(NamedTuple):
  """Files of a site; the server needs a copy of `public` alone."""

  private: Path
  public: Path


def make_site_key(folder: Path, site: str) -> SiteKey:
  """Makes a site's key pair, in OpenSSH's format: ECDSA on P-384.

  Args:
    folder: gets `SITE.key`, which stays at the site, and `SITE.pub`, which the server gets.
    site: the site's name.

  Returns:
    The two files.

  Raises:
    UserError: a name that is not safe as a file's name, or a file that would be overwritten.
  """
  if not _SAFE_NAME.fullmatch(site):
    raise UserError(
      "site: expected at most 100 letters, digits, '.', '_' and '-', the first a letter or digit; "
      f"got {site!r}"
    )
  files = SiteKey(folder / f"{site}.key", folder / f"{site}.pub")
  refuse_to_overwrite(files)
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  key = ec.generate_private_key(ec.SECP384R1())
  public = key.public_key().public_bytes(
    serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
  )
  create_file(files.private, pem(key, serialization.PrivateFormat.OpenSSH), 0o600)
  create_file(files.public, public + f" {site}\n".encode(), 0o644)
  return files


def check_site_key(file: Path) -> None:
  """Checks a site's private key.

  Raises:
    UserError: it is missing or of another kind.
  """
  key = read_private_key(file, "a site's private key, SITE.key")
  if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
    raise UserError(f"{file}: expected a key on a NIST curve; got {key.curve.name}. Make a new one")


def read_public_key(file: Path) -> bytes:
  """A site's public key; PEM.

  Raises:
    UserError: it is missing or of another kind.
  """
  data = read(file)
  try:
    key = serialization.load_ssh_public_key(data)
  except UNREADABLE:
    key = None
  if not isinstance(key, ec.EllipticCurvePublicKey):
    raise UserError(f"{file}: expected a site's public key, SITE.pub; got another kind of file")
  return key.public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
  )


def read_private_key(file: Path, what: str = "a private key") -> ec.EllipticCurvePrivateKey:
  """The private key in a file, which only its owner should be able to read.

  Raises:
    UserError: it is missing, or another thing than `what` says.
  """
  data = read(file)
  load = serialization.load_pem_private_key
  if b"BEGIN OPENSSH" in data:
    load = serialization.load_ssh_private_key
  try:
    key = load(data, None)
  except UNREADABLE:
    key = None
  if not isinstance(key, ec.EllipticCurvePrivateKey):
    raise UserError(f"{file}: expected {what} (ECDSA, no passphrase); got another kind of file")
  if file.stat().st_mode & 0o077:
    _LOG.warning("%s can be read by others than its owner. Run: chmod 600 %s", file, file)
  return key


def read(file: Path) -> bytes:
  """The bytes of a file.

  Raises:
    UserError: it cannot be read.
  """
  try:
    return file.read_bytes()
  except OSError as error:
    why = f"expected a file that can be read; {error.strerror}. {_WHENCE}"
    raise UserError(f"{file}: {why}") from error


def refuse_to_overwrite(files: Sequence[Path]) -> None:
  """Raises UserError if one of the files exists: what a key was for is lost with it."""
  for file in files:
    if file.exists():
      raise UserError(f"{file}: exists, and is not overwritten. Move it away to have a new one")


def pem(
  key: ec.EllipticCurvePrivateKey,
  kind: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
  """A private key as it is written, without a passphrase."""
  return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
