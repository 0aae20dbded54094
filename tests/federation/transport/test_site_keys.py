import logging

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from afspl_jax.errors import UserError
from afspl_jax.federation.secure.identity import Identity
from afspl_jax.federation.secure.roster import ROSTER, Roster, read_roster
from afspl_jax.federation.transport import certificates, site_keys


def mode(path):
  return path.stat().st_mode & 0o777


def test_only_the_owner_can_read_private_keys(tmp_path):
  files = certificates.make_tls_files(tmp_path / "server", ["fed.example.org"])
  site = site_keys.make_site_key(tmp_path / "site", "clinic_a")
  assert mode(tmp_path / "server") == mode(tmp_path / "site") == 0o700
  assert mode(files.key) == mode(tmp_path / "server" / "ca.key") == mode(site.private) == 0o600


def test_a_sites_keys_are_not_overwritten(tmp_path):
  site = site_keys.make_site_key(tmp_path, "clinic")
  site.private.unlink()
  before = site.public.read_bytes()
  with pytest.raises(UserError, match=r"clinic\.pub: expected no such file; it exists"):
    site_keys.make_site_key(tmp_path, "clinic")
  assert site.public.read_bytes() == before and not site.private.exists()


@pytest.mark.parametrize("site", ["", "..", ".hidden", "a/b", "../a", "a b", "-rf", "ä", "x" * 101])
def test_a_site_name_that_is_unsafe_as_a_file_name_is_rejected(tmp_path, site):
  with pytest.raises(UserError, match="site: expected at most 100 letters"):
    site_keys.make_site_key(tmp_path, site)


def test_flower_accepts_a_sites_key(tmp_path):
  site = site_keys.make_site_key(tmp_path, "clinic")
  site_keys.check_site_key(site.private)
  private = serialization.load_ssh_private_key(site.private.read_bytes(), None)
  assert isinstance(private.curve, ec.SECP384R1)
  public = serialization.load_pem_public_key(site_keys.read_public_key(site.public))
  assert public == private.public_key()
  assert site.public.read_text().endswith(" clinic\n")


def test_other_kinds_of_files_are_rejected(tmp_path):
  files = certificates.make_tls_files(tmp_path, [])
  site = site_keys.make_site_key(tmp_path, "clinic")
  for read, file, expected in [
    (
      site_keys.read_public_key,
      site.private,
      "a site's public key, SITE.pub; got another kind",
    ),
    (site_keys.read_public_key, files.ca, "expected a site's public key"),
    (
      site_keys.check_site_key,
      site.public,
      "a site's private key, SITE.key .*got another kind",
    ),
    (certificates.read_ca, site.public, r"expected a certificate \(PEM\); got another kind"),
    (
      certificates.read_ca,
      files.certificate,
      r"expected the certificate of a CA, the server's ca\.crt",
    ),
    (
      certificates.read_ca,
      tmp_path / "none",
      "expected a file that can be read; got: No such file",
    ),
    (site_keys.check_site_key, tmp_path, "expected a file that can be read; got: Is a directory"),
  ]:
    with pytest.raises(UserError, match=expected) as error:
      read(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_a_key_that_flower_does_not_accept_is_rejected(tmp_path):
  key = ed25519.Ed25519PrivateKey.generate()
  file = tmp_path / "site.key"
  file.touch(0o600)
  file.write_bytes(
    key.private_bytes(
      serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
  )
  with pytest.raises(UserError, match="expected a site's private key"):
    site_keys.check_site_key(file)


def test_a_key_that_others_can_read_is_a_warning(tmp_path, caplog):
  site = site_keys.make_site_key(tmp_path, "clinic")
  site.private.chmod(0o644)
  with caplog.at_level(logging.WARNING):
    site_keys.check_site_key(site.private)
  assert "expected a file that only its owner can read. Run: chmod 600" in caplog.text


def test_a_roster_has_the_public_key_and_the_name_of_every_site(tmp_path):
  with pytest.raises(UserError, match=r"sites: expected the sites' public keys, SITE\.pub"):
    site_keys.make_roster(tmp_path)
  made = [site_keys.make_site_key(tmp_path / "sites", name) for name in ("clinic_b", "clinic_a")]
  made[0].public.write_bytes(made[0].public.read_bytes().replace(b" clinic_b", b" me@laptop"))
  file, sites = site_keys.make_roster(tmp_path)
  assert (file, sites) == (tmp_path / ROSTER, ["clinic_a", "clinic_b"])
  keys = read_roster(file)
  for pair, name in zip(made, ("clinic_b", "clinic_a"), strict=True):
    key = site_keys.read_private_key(pair.private)
    assert keys[name] == Identity(name, key, Roster()).public
  with pytest.raises(UserError, match=r"clinic_a\.key: expected a site's public key"):
    site_keys.make_roster(tmp_path, [made[1].private])
