"""Hosts are killed in the middle of a round and restarted: SIGKILL, TLS, real processes."""

import json
import signal

import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.certificates import make_tls_files
from afspl_jax.federation.transport.connection import free_port
from afspl_jax.federation.transport.site_keys import make_site_key
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.storage.run_lines import read_lines
from tests.federation.least_squares import LeastSquares, evaluate, init_params
from tests.federation.transport.hosts import TIMEOUT, start, wait_for
from tests.federation.transport.server_host import PHASES, ROUNDS, SITES

NAMES = [f"site_{i:02d}" for i in range(SITES)]


def without_seconds(path):
  return [
    {key: value for key, value in line.items() if key not in ("seconds", "bytes_up", "bytes_down")}
    for line in read_lines(path)
  ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The same federation in one process, not interrupted."""
  with RunFolder.open(tmp_path_factory.mktemp("whole") / "run", {}) as folder:
    plan = Plan(
      params=init_params(),
      strategy=strategies.get_strategy("fedavgm"),
      fed=Fed(rounds=ROUNDS, clients_per_round=SITES),
      seed=0,
      folder=folder,
      checkpoints=Checkpoints(folder.path / "checkpoints"),
      evaluate=evaluate,
    )
    params = run_local(plan, LeastSquares(), SITES)
    yield folder.path, {name: leaf.tobytes().hex() for name, leaf in params["mapper"].items()}


@pytest.mark.parametrize(
  "phases",
  [
    pytest.param(("collect", "checkpoint"), id="two phases"),
    pytest.param(PHASES, id="every phase", marks=pytest.mark.slow),
  ],
)
def test_a_server_killed_in_any_phase_ends_with_the_same_result(tmp_path, whole, phases):
  make_tls_files(tmp_path / "keys", [])
  for name in NAMES:
    make_site_key(tmp_path / "keys", name)
  port = free_port()
  sites = start("site_host.py", f"127.0.0.1:{port}", tmp_path, *NAMES, out=tmp_path / "sites")
  ended = []
  try:
    for round, phase in enumerate((*phases, "never"), start=1):
      out = tmp_path / f"server_{phase}"
      server = start("server_host.py", tmp_path, port, phase, round, out=out)
      try:
        ended.append((phase, server.wait(2 * TIMEOUT)))
      finally:
        server.kill()
  finally:
    sites.kill()
    sites.wait()
  texts = "\n".join((tmp_path / f"server_{phase}").read_text() for phase, _ in ended)
  assert ended == [*((phase, -signal.SIGKILL) for phase in phases), ("never", 0)], texts
  path, result = whole
  assert json.loads((tmp_path / "result.json").read_text()) == result
  for name in ("metrics.jsonl", "clients.jsonl"):
    assert without_seconds(tmp_path / "run" / name) == without_seconds(path / name)


@pytest.mark.slow
def test_a_killed_site_is_skipped_and_rejoins(tmp_path):
  make_tls_files(tmp_path / "keys", [])
  for name in NAMES:
    make_site_key(tmp_path / "keys", name)
  port = free_port()
  begin = lambda *names: start(  # noqa: E731
    "site_host.py", f"127.0.0.1:{port}", tmp_path, *names, out=tmp_path / f"{names[0]}.log"
  )
  hosts = [begin(*NAMES[:2]), begin(NAMES[2])]
  server = start("server_host.py", tmp_path, port, "long", 0, out=tmp_path / "server")
  lines = lambda: read_lines(tmp_path / "run" / "clients.jsonl")  # noqa: E731
  mine = lambda: [line for line in lines() if line["client"] == NAMES[2]]  # noqa: E731
  try:
    wait_for(lambda: len(mine()) >= 1, "first round")
    hosts[1].kill()
    hosts[1].wait()
    hosts[1] = begin(NAMES[2])
    wait_for(lambda: mine()[-1]["status"] != "ok", "round without the site")
    seconds = wait_for(lambda: mine()[-1]["status"] == "ok", "round with the site again")
    print(f"\nthe site took part again {seconds:.0f} s after it was missing")
  finally:
    for process in (server, *hosts):
      process.kill()
      process.wait()
  statuses = {line["status"] for line in mine()}
  assert statuses - {"ok"}, statuses
  others = {line["status"] for line in lines() if line["client"] != NAMES[2]}
  assert others == {"ok"}
