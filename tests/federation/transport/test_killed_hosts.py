"""Hosts that are killed in the middle of a round, and start again: SIGKILL, TLS, real processes."""

import json
import signal

import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.certificates import make_server_keys
from afspl_jax.federation.transport.connection import free_port
from afspl_jax.federation.transport.site_keys import make_site_key
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder, read_lines
from tests.federation.least_squares import LeastSquares, evaluate, init_params
from tests.federation.transport.hosts import PATIENCE, start, wait_for
from tests.federation.transport.server_host import MOMENTS, ROUNDS, SITES

NAMES = [f"site_{i:02d}" for i in range(SITES)]


def without_seconds(path):
  return [
    {key: value for key, value in line.items() if key not in ("seconds", "bytes_up", "bytes_down")}
    for line in read_lines(path)
  ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The same federation in one process, never interrupted."""
  with RunFolder.open(tmp_path_factory.mktemp("whole") / "run", {}) as folder:
    plan = Plan(
      params=init_params(),
      strategy=strategies.get("fedavgm"),
      fed=Fed(rounds=ROUNDS, clients_per_round=SITES),
      seed=0,
      folder=folder,
      checkpoints=Checkpoints(folder.path / "checkpoints"),
      evaluate=evaluate,
    )
    params = run_local(plan, LeastSquares(), SITES)
    yield folder.path, {name: leaf.tobytes().hex() for name, leaf in params["mapper"].items()}


@pytest.mark.parametrize(
  "moments",
  [
    pytest.param(("collect", "checkpoint"), id="two phases"),
    pytest.param(MOMENTS, id="every phase", marks=pytest.mark.slow),
  ],
)
def test_a_server_killed_in_a_round_ends_as_one_that_never_was(tmp_path, whole, moments):
  make_server_keys(tmp_path / "keys", [])
  for name in NAMES:
    make_site_key(tmp_path / "keys", name)
  port = free_port()
  sites = start("site_host.py", f"127.0.0.1:{port}", tmp_path, *NAMES, out=tmp_path / "sites")
  ended = []
  try:
    for round, moment in enumerate((*moments, "never"), start=1):
      out = tmp_path / f"server_{moment}"
      server = start("server_host.py", tmp_path, port, moment, round, out=out)
      try:
        ended.append((moment, server.wait(2 * PATIENCE)))
      finally:
        server.kill()
  finally:
    sites.kill()
    sites.wait()
  texts = "\n".join((tmp_path / f"server_{moment}").read_text() for moment, _ in ended)
  assert ended == [*((moment, -signal.SIGKILL) for moment in moments), ("never", 0)], texts
  path, result = whole
  assert json.loads((tmp_path / "result.json").read_text()) == result
  for name in ("metrics.jsonl", "clients.jsonl"):
    assert without_seconds(tmp_path / "run" / name) == without_seconds(path / name)


@pytest.mark.slow
def test_a_site_that_is_killed_is_left_out_and_takes_part_again(tmp_path):
  make_server_keys(tmp_path / "keys", [])
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
    wait_for(lambda: len(mine()) >= 1, "a first round")
    hosts[1].kill()
    hosts[1].wait()
    hosts[1] = begin(NAMES[2])
    wait_for(lambda: mine()[-1]["status"] != "ok", "its absence")
    seconds = wait_for(lambda: mine()[-1]["status"] == "ok", "its return", 2 * PATIENCE)
    print(f"\nback in the average {seconds:.0f} s after its absence was seen")
  finally:
    for process in (server, *hosts):
      process.kill()
      process.wait()
  statuses = {line["status"] for line in mine()}
  assert statuses - {"ok"}, statuses
  others = {line["status"] for line in lines() if line["client"] != NAMES[2]}
  assert others == {"ok"}
