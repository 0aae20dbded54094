"""The TLS certificate of the server's host, by which sites recognise it.

The federation's own CA signs it. A site needs only `ca.crt`.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from afspl_jax.errors import UserError
from afspl_jax.federation.transport.site_keys import (
  PARSE_ERRORS,
  private_key_pem,
  read_key_file,
  read_private_key,
  require_absent,
)
from afspl_jax.storage.atomic_files import create_file

_THIS_HOST = ("localhost", "127.0.0.1", "::1")
_CLOCK_SKEW = datetime.timedelta(hours=1)  # between two hosts
_CA_KEY_USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


class TlsFiles(NamedTuple):
  """Files of the server's host; only `ca` is copied to the sites."""

  ca: Path
  certificate: Path
  key: Path


def make_tls_files(folder: Path, hosts: Sequence[str], days: int = 3650) -> TlsFiles:
  """Makes the server's certificate, and the CA that signs it unless the folder has one.

  To renew a certificate, move `server.pem` and `server.key` away and call this again: sites keep
  their `ca.crt`. `ca.key` has no other use; keep it on another machine.

  Args:
    folder: gets `ca.crt`, `ca.key`, `server.pem` and `server.key`; created if missing.
    hosts: names and addresses under which sites reach the server, without a port. The loopback
      names of this host are added.
    days: until the certificates expire.

  Returns:
    The files for a SuperLink.

  Raises:
    UserError: a host is not a name or an address, or a file exists that would be overwritten, or
      the CA's key is missing.
  """
  if days < 1:
    raise UserError(f"days: expected at least 1; got {days}")
  names = list(dict.fromkeys(map(_alternative_name, [*hosts, *_THIS_HOST])))
  files = TlsFiles(folder / "ca.crt", folder / "server.pem", folder / "server.key")
  require_absent([files.certificate, files.key])
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  ca, ca_key = _ca(files.ca, folder / "ca.key", days)
  expiry = min(_now() + datetime.timedelta(days=days), ca.not_valid_after_utc)
  key = ec.generate_private_key(ec.SECP384R1())
  certificate = (
    _builder(hosts[0] if hosts else "localhost", key.public_key(), ca.subject, expiry)
    .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    .add_extension(x509.SubjectAlternativeName(names), critical=False)
    .add_extension(_issuer_id(ca_key), critical=False)
    .sign(ca_key, hashes.SHA384())
  )
  create_file(files.key, private_key_pem(key), 0o600)
  create_file(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
  return files


def read_tls_files(folder: Path) -> TlsFiles:
  """Checks the files that `make_tls_files` made in a folder, and returns their paths.

  Raises:
    UserError: a file is missing, expired, another kind of file, or does not match the others.
  """
  files = TlsFiles(folder / "ca.crt", folder / "server.pem", folder / "server.key")
  advice = "Move server.pem and server.key away and run `afspl keys server` again"
  ca, certificate = _certificate(files.ca), _certificate(files.certificate)
  key = read_private_key(files.key)
  try:
    certificate.verify_directly_issued_by(ca)
  except (InvalidSignature, *PARSE_ERRORS):
    raise UserError(
      f"{files.certificate}: expected a certificate signed by {files.ca.name}; got one"
      f" signed by another CA. {advice}"
    ) from None
  if _public_key(certificate) != key.public_key():
    raise UserError(
      f"{files.key}: expected the key of {files.certificate.name}; got another key. {advice}"
    )
  return files


def read_ca(file: Path) -> bytes:
  """Checks a site's copy of `ca.crt`; returns it as PEM.

  Raises:
    UserError: the file is missing, expired, or not the certificate of a CA.
  """
  certificate = _certificate(file)
  try:
    is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
  except (x509.ExtensionNotFound, *PARSE_ERRORS):
    is_ca = False
  if not is_ca:
    raise UserError(
      f"{file}: expected the certificate of a CA, the server's ca.crt; got another one"
    )
  return certificate.public_bytes(serialization.Encoding.PEM)


def _ca(
  file: Path, key_file: Path, days: int
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
  """Returns the folder's CA; makes it if there is none."""
  if file.exists():
    return _certificate(file), read_private_key(key_file)
  require_absent([key_file])
  key = ec.generate_private_key(ec.SECP384R1())
  name = "afspl_jax federation CA"
  certificate = (
    _builder(name, key.public_key(), _name(name), _now() + datetime.timedelta(days=days))
    .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    .add_extension(_CA_KEY_USAGE, critical=True)
    .add_extension(_issuer_id(key), critical=False)
    .sign(key, hashes.SHA384())
  )
  create_file(key_file, private_key_pem(key), 0o600)
  create_file(file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
  return certificate, key


def _builder(
  subject: str, key: ec.EllipticCurvePublicKey, issuer: x509.Name, expiry: datetime.datetime
) -> x509.CertificateBuilder:
  return (
    x509.CertificateBuilder()
    .subject_name(_name(subject))
    .issuer_name(issuer)
    .public_key(key)
    .serial_number(x509.random_serial_number())
    .not_valid_before(_now() - _CLOCK_SKEW)
    .not_valid_after(expiry)
    .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
  )


def _name(common_name: str) -> x509.Name:
  return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _issuer_id(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
  return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _alternative_name(host: str) -> x509.GeneralName:
  try:
    return x509.IPAddress(ipaddress.ip_address(host))
  except ValueError:
    pass
  try:
    name = host.encode("idna").decode()
  except UnicodeError:
    name = ""
  if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?", name):
    raise UserError(f"host: expected a name or an address, such as fed.example.org; got {host!r}")
  return x509.DNSName(name)


def _certificate(file: Path) -> x509.Certificate:
  data = read_key_file(file)
  try:
    certificate = x509.load_pem_x509_certificate(data)
    expiry = certificate.not_valid_after_utc
  except PARSE_ERRORS:
    raise UserError(f"{file}: expected a certificate (PEM); got another kind of file") from None
  if expiry < _now():
    day = expiry.date()
    raise UserError(
      f"{file}: expected a valid certificate; got one that expired on {day}. Renew it"
    )
  return certificate


def _public_key(certificate: x509.Certificate) -> object:
  try:
    return certificate.public_key()
  except PARSE_ERRORS:
    return None


def _now() -> datetime.datetime:
  return datetime.datetime.now(datetime.UTC)
