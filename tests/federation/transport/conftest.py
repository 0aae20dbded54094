import pytest

from afspl_jax.federation.transport.certificates import make_tls_files
from afspl_jax.federation.transport.connection import free_port
from afspl_jax.federation.transport.superlink import SuperLink


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A host's folder."""
  return tmp_path_factory.mktemp("net")


@pytest.fixture(scope="module")
def tls_files(base):
  return make_tls_files(base / "keys", [])


class FaultySuperLink(SuperLink):
  """A SuperLink that fails when a file asks for it (faulty_superlink.py)."""

  _program = "tests.federation.transport.faulty_superlink:main"


@pytest.fixture(scope="module")
def superlink(base, tls_files):
  """A SuperLink with TLS and authentication; its messages are in `notices`."""
  notices = []
  where = (base / "superlink", "127.0.0.1", free_port(), tls_files)
  with FaultySuperLink(*where, notices.append) as superlink:
    superlink.notices = notices
    yield superlink
