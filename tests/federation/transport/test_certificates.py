import datetime
import socket
import ssl
import threading

import pytest
from cryptography import x509

from afspl_jax.errors import UserError
from afspl_jax.federation.transport import certificates


def certificate(file):
  return x509.load_pem_x509_certificate(file.read_bytes())


def test_the_certificate_is_valid_for_every_host_and_for_loopback(tmp_path):
  files = certificates.make_tls_files(
    tmp_path, ["fed.example.org", "10.1.2.3", "fd00::1", "bücher.de"]
  )
  names = certificate(files.certificate).extensions.get_extension_for_class(
    x509.SubjectAlternativeName
  )
  assert set(names.value.get_values_for_type(x509.DNSName)) == {
    "fed.example.org",
    "xn--bcher-kva.de",
    "localhost",
  }
  addresses = map(str, names.value.get_values_for_type(x509.IPAddress))
  assert set(addresses) == {"10.1.2.3", "fd00::1", "127.0.0.1", "::1"}


def handshake(files, host, ca):
  """Connects to a server with these files as `host`, and trusts only `ca`."""
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(files.certificate, files.key)
  ours, theirs = socket.socketpair()

  def answer():
    try:
      context.wrap_socket(theirs, server_side=True).close()
    except (ssl.SSLError, ConnectionError):
      theirs.close()

  thread = threading.Thread(target=answer)
  thread.start()
  strict = ssl.create_default_context(cafile=ca)
  strict.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
  try:
    with strict.wrap_socket(ours, server_hostname=host) as connection:
      return connection.version()
  finally:
    ours.close()
    thread.join()


def test_a_site_verifies_the_servers_ca_and_host(tmp_path):
  files = certificates.make_tls_files(tmp_path / "one", ["fed.example.org"])
  other = certificates.make_tls_files(tmp_path / "other", ["fed.example.org"])
  assert handshake(files, "fed.example.org", files.ca) == "TLSv1.3"
  assert handshake(files, "127.0.0.1", files.ca) == "TLSv1.3"
  with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
    handshake(files, "evil.example.org", files.ca)
  with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
    handshake(files, "fed.example.org", other.ca)


def test_a_renewed_certificate_has_the_same_ca_and_expires_with_it(tmp_path):
  files = certificates.make_tls_files(tmp_path, ["fed.example.org"], days=30)
  ca, old = files.ca.read_bytes(), files.certificate.read_bytes()
  files.certificate.unlink()
  files.key.unlink()
  files = certificates.make_tls_files(tmp_path, ["fed.example.org"], days=3650)
  assert files.ca.read_bytes() == ca and files.certificate.read_bytes() != old
  assert certificates.read_tls_files(tmp_path) == files
  left = certificate(files.certificate).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
  assert 29 <= left.days <= 30  # not beyond the CA


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.key"])
def test_no_file_is_overwritten(tmp_path, name):
  (tmp_path / name).write_text("precious")
  with pytest.raises(UserError, match=rf"{name}: expected no such file; it exists .*\. Move it"):
    certificates.make_tls_files(tmp_path, ["fed.example.org"])
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == "precious"


def test_a_ca_without_its_key_is_an_error(tmp_path):
  files = certificates.make_tls_files(tmp_path, [])
  for name in ("ca.key", "server.pem", "server.key"):
    (tmp_path / name).unlink()
  with pytest.raises(
    UserError, match=r"ca\.key: expected a file that can be read; got: No such file"
  ):
    certificates.make_tls_files(tmp_path, [])
  assert files.ca.exists() and not files.certificate.exists()


@pytest.mark.parametrize("host", ["", "https://fed.org", "fed.org:80", "two words", "a/b", "a..b"])
def test_an_invalid_host_is_rejected(tmp_path, host):
  with pytest.raises(UserError, match="host: expected a name or an address, such as"):
    certificates.make_tls_files(tmp_path / "new", [host])
  assert not (tmp_path / "new").exists()


def test_an_expired_certificate_is_rejected(tmp_path, monkeypatch):
  files = certificates.make_tls_files(tmp_path, [], days=30)
  later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=31)
  monkeypatch.setattr(certificates, "_now", lambda: later)
  with pytest.raises(
    UserError, match=r"ca\.crt: expected a valid certificate; got one that expired on 20"
  ):
    certificates.read_ca(files.ca)
  with pytest.raises(UserError, match="Renew it"):
    certificates.read_tls_files(tmp_path)


def test_files_that_do_not_match_are_rejected(tmp_path):
  files = certificates.make_tls_files(tmp_path / "one", [])
  other = certificates.make_tls_files(tmp_path / "other", [])
  own = files.key.read_bytes()
  files.key.write_bytes(other.key.read_bytes())
  with pytest.raises(UserError, match=r"server\.key: expected the key of server\.pem; got another"):
    certificates.read_tls_files(tmp_path / "one")
  files.key.write_bytes(own)
  files.ca.write_bytes(other.ca.read_bytes())
  with pytest.raises(UserError, match=r"server\.pem: expected a certificate signed by ca\.crt"):
    certificates.read_tls_files(tmp_path / "one")
