"""The roster of a site: keys are pinned at first use, or given; another key is never accepted."""

import logging

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import PartyError, is_site_name
from afspl_jax.federation.secure.identity import is_signed, run_identities
from afspl_jax.federation.secure.roster import (
  ROSTER,
  Roster,
  fingerprint,
  read_roster,
)

identity_of = run_identities()
KEYS = {name: identity_of(name).public for name in ("bonn", "aachen", "Köln am Rhein")}


def test_keys_are_pinned_at_first_use_and_kept_for_the_next_start(tmp_path, caplog):
  file = tmp_path / "clients" / "trier" / ROSTER
  roster = Roster(file)
  roster.expect({"bonn": KEYS["bonn"]})
  roster.expect(KEYS)
  assert read_roster(file) == KEYS
  pinned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
  assert [text.partition(" of ")[2] for text in pinned] == ["bonn", "Köln am Rhein, aachen"]
  again = Roster(file)
  again.expect(KEYS)
  with pytest.raises(PartyError) as error:
    again.expect({"aachen": KEYS["bonn"]})
  assert str(error.value) == (
    "aachen: expected the identity key of this site's roster; got another. If aachen has a new key,"
    " delete its line there and start this site again"
  )
  found = fingerprint(KEYS["aachen"]), fingerprint(KEYS["bonn"])
  assert "expected the identity key {}; got {}".format(*found) in caplog.text
  assert read_roster(file) == KEYS and str(file) in caplog.text
  with pytest.raises(PartyError, match="trier: expected a key of its own; got that of bonn in"):
    again.expect({"trier": KEYS["bonn"]})
  assert read_roster(file) == KEYS  # which would else not be a roster any more


def test_nobody_is_added_to_a_given_roster(tmp_path):
  file = tmp_path / "all.pub"
  file.write_bytes(b"# Rhineland\n\n" + KEYS["bonn"] + b" bonn\n")
  roster = Roster(file, given=True)
  roster.expect({"bonn": KEYS["bonn"]})
  with pytest.raises(PartyError, match="aachen: expected a site of this site's roster"):
    roster.expect({"bonn": KEYS["bonn"], "aachen": KEYS["aachen"]})
  assert b"aachen" not in file.read_bytes()
  with pytest.raises(UserError, match=r"no\.pub: expected a roster; got: No such file"):
    Roster(tmp_path / "no.pub", given=True)


def test_a_file_that_is_no_roster_is_rejected_by_its_line(tmp_path):
  line = KEYS["bonn"] + b" bonn\n"
  other = ed25519.Ed25519PrivateKey.generate().public_key()
  for bad, why in (
    (b"bonn\n", "expected a site's public key and its name"),
    (KEYS["aachen"] + b"\n", "expected a site's public key and its name"),
    (KEYS["aachen"][:-8] + b" aachen\n", "expected a site's public key"),
    (other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" aachen\n", "public key"),
    (KEYS["aachen"] + b" bonn\n", "expected one key of bonn; got a second one"),
  ):
    file = tmp_path / ROSTER
    file.write_bytes(line + bad)
    with pytest.raises(UserError, match=f"roster.pub:2: .*{why}"):
      read_roster(file)
  file.write_bytes(line + KEYS["bonn"] + b" aachen\n")
  with pytest.raises(UserError, match="a different key for each site"):
    read_roster(file)


def test_a_roster_that_cannot_be_written_ends_the_session(tmp_path):
  (tmp_path / "clients").write_text("a file")
  with pytest.raises(UserError, match="expected to write the roster"):
    Roster(tmp_path / "clients" / "trier" / ROSTER).expect(KEYS)


def test_a_name_cannot_add_lines_to_the_file():
  assert all(map(is_site_name, KEYS))
  for name in ("", "a\nb", " bonn", "bonn ", "a\u2028b", "a\tb", "x" * 81):
    assert not is_site_name(name)


def test_a_signature_is_of_one_key_and_one_text():
  bonn, aachen = identity_of("bonn"), identity_of("aachen")
  signature = bonn.sign(b"text")
  assert is_signed(bonn.public, signature, b"text")
  assert not is_signed(bonn.public, signature, b"texts")
  assert not is_signed(aachen.public, signature, b"text")
  assert not is_signed(bonn.public + b" comment", signature, b"text")
  assert len(signature) == 64 and not is_signed(bonn.public, b"\0" + signature, b"text")
  assert not is_signed(bonn.public, b"", b"text")
  assert not is_signed(bonn.public, signature * 1000, b"text")
  point = ec.generate_private_key(ec.SECP256R1()).public_key()
  short = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
  assert not is_signed(short, signature, b"text")


def test_a_fingerprint_is_that_of_ssh_keygen():
  """Key and fingerprint as OpenSSH 9 wrote them."""
  public = (
    b"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGIOlHSh5Arx09TCNCG2"
    b"hlo6XGBZbqstJA9XcsLodVc38XftF2a1kOmzmQ4IBl+4wsUZMQwTYENTF4jOJA0A9+0="
  )
  assert fingerprint(public) == "SHA256:40itvVfyFZA9nCeJhjas+cwDxGmyk7/7rgiL/0Eu4RY"
