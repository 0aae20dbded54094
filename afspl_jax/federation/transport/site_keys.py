"""Key pairs of the sites, and how private keys are read and written.

A site keeps `SITE.key` and gives `SITE.pub` to the server, which recognises the site by it. The
server's own certificate is in certificates.py.
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
from afspl_jax.federation.secure.roster import ROSTER, read_roster
from afspl_jax.storage.atomic_files import create_file, write_text

# What `cryptography` raises for a file that it cannot parse.
PARSE_ERRORS = (
  ValueError,
  TypeError,
  NotImplementedError,
  UnsupportedAlgorithm,
  x509.InvalidVersion,
  x509.DuplicateExtension,
  x509.UnsupportedGeneralNameType,
)

SITES = "sites"  # subfolder of the server's keys, with the public keys of the sites
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ADVICE = "`afspl keys` makes keys; a site also needs ca.crt, the server sites/SITE.pub"
_LOG = logging.getLogger(__name__)


class SiteKeyFiles(NamedTuple):
  """Files of a site; only `public` is copied to the server."""

  private: Path
  public: Path


def make_site_key(folder: Path, site: str) -> SiteKeyFiles:
  """Makes a site's key pair, in OpenSSH's format: ECDSA on P-384.

  Args:
    folder: gets `SITE.key`, which stays at the site, and `SITE.pub`, which is for the server.
    site: the site's name.

  Returns:
    The two files.

  Raises:
    UserError: the name is not safe as a file name, or one of the files exists.
  """
  if not _SAFE_NAME.fullmatch(site):
    raise UserError(
      "site: expected at most 100 letters, digits, '.', '_' and '-', the first a letter or digit; "
      f"got {site!r}"
    )
  files = SiteKeyFiles(folder / f"{site}.key", folder / f"{site}.pub")
  require_absent(files)
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  key = ec.generate_private_key(ec.SECP384R1())
  public = key.public_key().public_bytes(
    serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
  )
  create_file(files.private, private_key_pem(key, serialization.PrivateFormat.OpenSSH), 0o600)
  create_file(files.public, public + f" {site}\n".encode(), 0o644)
  return files


def make_roster(folder: Path, files: Sequence[Path] = ()) -> tuple[Path, list[str]]:
  """Writes the public keys of a federation's sites to one file, for `--roster` of every site.

  Args:
    folder: gets the file.
    files: `SITE.pub` of each site; by default those in the folder's `sites`.

  Returns:
    The file, and the names of the sites.

  Raises:
    UserError: there is no public key, or a file is not one.
  """
  found = list(files) or sorted((folder / SITES).glob("*.pub"))
  if not found:
    raise UserError(f"{folder / SITES}: expected the sites' public keys, SITE.pub; got none")
  lines = []
  for file in found:
    read_public_key(file)  # so that nothing else is copied
    lines.append(b" ".join([*read_key_file(file).split()[:2], file.stem.encode()]).decode())
  roster = folder / ROSTER
  write_text(roster, "\n".join([*lines, ""]))
  return roster, sorted(read_roster(roster))


def check_site_key(file: Path) -> None:
  """Checks that a file is a site's private key.

  Raises:
    UserError: the file is missing or is another kind of file.
  """
  key = read_private_key(file, "a site's private key, SITE.key")
  if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
    raise UserError(f"{file}: expected a key on a NIST curve; got {key.curve.name}. Make a new one")


def read_public_key(file: Path) -> bytes:
  """Reads a site's public key; returns it as PEM.

  Raises:
    UserError: the file is missing or is another kind of file.
  """
  data = read_key_file(file)
  try:
    key = serialization.load_ssh_public_key(data)
  except PARSE_ERRORS:
    key = None
  if not isinstance(key, ec.EllipticCurvePublicKey):
    raise UserError(f"{file}: expected a site's public key, SITE.pub; got another kind of file")
  return key.public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
  )


def read_private_key(file: Path, what: str = "a private key") -> ec.EllipticCurvePrivateKey:
  """Reads a private key, and warns if other users can read the file.

  Args:
    file: the file.
    what: what the file should be, for the error.

  Raises:
    UserError: the file is missing or is another kind of file.
  """
  data = read_key_file(file)
  load = serialization.load_pem_private_key
  if b"BEGIN OPENSSH" in data:
    load = serialization.load_ssh_private_key
  try:
    key = load(data, None)
  except PARSE_ERRORS:
    key = None
  if not isinstance(key, ec.EllipticCurvePrivateKey):
    raise UserError(f"{file}: expected {what} (ECDSA, no passphrase); got another kind of file")
  if file.stat().st_mode & 0o077:
    _LOG.warning("%s: expected a file that only its owner can read. Run: chmod 600 %s", file, file)
  return key


def read_key_file(file: Path) -> bytes:
  """Reads a file of `afspl keys`.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    return file.read_bytes()
  except OSError as error:
    raise UserError(
      f"{file}: expected a file that can be read; got: {error.strerror}. {_ADVICE}"
    ) from error


def require_absent(files: Sequence[Path]) -> None:
  """Raises UserError if one of the files exists: an overwritten key cannot be restored."""
  for file in files:
    if file.exists():
      raise UserError(
        f"{file}: expected no such file; it exists and is not overwritten. Move it away to make a"
        " new one"
      )


def private_key_pem(
  key: ec.EllipticCurvePrivateKey,
  kind: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
  """Returns a private key as PEM, without a passphrase."""
  return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
