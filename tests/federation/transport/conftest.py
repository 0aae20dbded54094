import os
from pathlib import Path

import pytest

from afspl_jax.federation.transport.certificates import make_server_keys
from afspl_jax.federation.transport.connection import free_port
from afspl_jax.federation.transport.superlink import SuperLink


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: takes more than a minute; run with -m slow")


def pytest_collection_modifyitems(config, items):
  if "slow" not in config.option.markexpr:
    for item in items:
      if "slow" in item.keywords:
        item.add_marker(pytest.mark.skip(reason="takes more than a minute; run with -m slow"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A host's folder."""
  return tmp_path_factory.mktemp("net")


@pytest.fixture(scope="module")
def server_keys(base):
  return make_server_keys(base / "keys", [])


class MortalSuperLink(SuperLink):
  """One that dies where dying_gate.py is told to."""

  _program = "tests.federation.transport.dying_gate:main"


@pytest.fixture(scope="module")
def superlink(base, server_keys):
  """A SuperLink with TLS and authentication; what it says is in `said`."""
  said = []
  where = (base / "superlink", "127.0.0.1", free_port(), server_keys)
  with pytest.MonkeyPatch.context() as patch:
    path = os.environ.get("PYTHONPATH", "")
    patch.setenv("PYTHONPATH", f"{Path(__file__).parents[3]}{os.pathsep}{path}")
    with MortalSuperLink(*where, said.append) as superlink:
      superlink.said = said
      yield superlink
