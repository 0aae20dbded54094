"""The roster: the identity keys of a federation's sites, as one site knows them.

A file has a line for each site, like its SITE.pub: type of key, key, and the site's name.
"""

import base64
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import PartyError, is_site_name
from afspl_jax.storage.atomic_files import write_text

ROSTER = "roster.pub"  # the file's name, in a site's own folder and in that of the keys

_LOG = logging.getLogger(__name__)


class Roster:
  """The public identity keys by site.

  Args:
    file: keeps them; without one they are in memory.
    given: the file is complete and is not changed: a site that is not in it is rejected. By
      default a site's key is added (pinned) when it is first seen.

  Raises:
    UserError: the file is not a roster, or is given and missing.
  """

  def __init__(self, file: Path | None = None, *, given: bool = False):
    self._file, self._given = file, given
    self._keys: dict[str, bytes] = {}
    if file is not None and (given or file.exists()):
      self._keys = read_roster(file)

  def key_of(self, site: str) -> bytes | None:
    """The key of a site, if it is known."""
    return self._keys.get(site)

  def expect(self, keys: Mapping[str, bytes]) -> None:
    """Compares the keys that sites show with the roster; pins those of new sites.

    Raises:
      PartyError: a site has another key than in the roster, or that of another site, or is not in
        a given one.
      UserError: the file cannot be written.
    """
    owners = {key: site for site, key in self._keys.items()}
    for site, key in keys.items():
      known, owner = self._keys.get(site), owners.get(key, site)
      if known is None and self._given:
        raise PartyError(
          f"{site}: expected a site of this site's roster; got one that is not in it"
        )
      if known not in (None, key):
        place = self._file or "the roster in memory"
        found = fingerprint(known), fingerprint(key)  # for people here; the server gets the error
        _LOG.warning("%s: %s: expected the identity key %s; got %s", place, site, *found)
        raise PartyError(
          f"{site}: expected the identity key of this site's roster; got another. If {site} has a"
          " new key, delete its line there and start this site again"
        )
      if owner != site:
        raise PartyError(
          f"{site}: expected a key of its own; got that of {owner} in this site's roster. If"
          f" {owner} is now {site}, change the name there and start this site again"
        )
    if new := sorted(keys.keys() - self._keys.keys()):
      self._keys |= {site: keys[site] for site in new}
      if self._file is not None:
        self._save(self._file, new)

  def _save(self, file: Path, new: list[str]) -> None:
    try:
      file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
      write_text(file, "".join(f"{key.decode()} {site}\n" for site, key in self._keys.items()))
    except OSError as error:
      raise UserError(
        f"{file}: expected to write the roster; got: {error}. Free the disk and start the same"
        " command again"
      ) from error
    _LOG.warning("%s: pinned the identity keys of %s", file, ", ".join(new))


def read_roster(file: Path) -> dict[str, bytes]:
  """Reads a roster: public keys in OpenSSH's format, by site.

  Raises:
    UserError: the file is missing, or a line is not a site's public key.
  """
  try:
    lines = file.read_bytes().splitlines()
  except OSError as error:
    raise UserError(
      f"{file}: expected a roster; got: {error.strerror}. `afspl keys roster` makes one of the"
      " sites' public keys"
    ) from error
  keys: dict[str, bytes] = {}
  for number, line in enumerate(lines, 1):
    if not line.strip() or line.startswith(b"#"):
      continue
    place = f"{file}:{number}"
    key, site = _parse_line(place, line)
    if keys.setdefault(site, key) != key:
      raise UserError(f"{place}: expected one key of {site}; got a second one. Delete one of them")
  if len(set(keys.values())) < len(keys):
    raise UserError(f"{file}: expected a different key for each site; got one twice. Make new ones")
  return keys


def load_public(text: bytes) -> ec.EllipticCurvePublicKey | None:
  """An identity's public key from OpenSSH's format; None if the text is anything else."""
  try:
    key = serialization.load_ssh_public_key(text)
  except (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm):
    return None
  return key if isinstance(key, ec.EllipticCurvePublicKey) else None


def public_text(key: ec.EllipticCurvePublicKey) -> bytes:
  """A public key in OpenSSH's format, without a comment."""
  return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def fingerprint(public: bytes) -> str:
  """What `ssh-keygen -l` shows of a public key."""
  blob = base64.b64decode(public.split(b" ")[1])
  return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _parse_line(place: str, line: bytes) -> tuple[bytes, str]:
  """The public key and the site of a line."""
  kind, text, name = [*line.split(None, 2), b"", b"", b""][:3]
  site = name.decode(errors="replace").strip()
  loaded = load_public(kind + b" " + text)
  if loaded is None or not is_site_name(site):
    raise UserError(
      f"{place}: expected a site's public key and its name, as in SITE.pub; got"
      f" {line[:40].decode(errors='replace')!r}. `afspl keys roster` writes such a file"
    )
  return public_text(loaded), site
