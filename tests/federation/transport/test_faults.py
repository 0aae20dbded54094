"""What a federation makes of sites and hosts that go wrong: real processes, TLS, one run."""

import os
import signal

import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.server.rounds import Plan, run_rounds
from afspl_jax.federation.transport.executors import open_grid
from afspl_jax.federation.transport.site_keys import make_site_key
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import assert_same_bits, evaluate, init_params, reference
from tests.federation.transport.faulty_host import ALL, HANGS, ONCE, SCHEDULE, WAKES, WHY
from tests.federation.transport.hosts import start
from tests.federation.watching import Watching

SITES = [f"site_{i:02d}" for i in ALL]
ROUNDS = 12
DEADLINE = 15.0  # seconds: far more than a round needs, also on a busy machine


def make_plan(folder, **fed):
  return Plan(
    params=init_params(),
    strategy=strategies.get("fedavg"),
    fed=Fed(**{"rounds": ROUNDS, "clients_per_round": len(SITES), "deadline": DEADLINE, **fed}),
    seed=0,
    folder=folder,
    checkpoints=Checkpoints(folder.path / "checkpoints"),
    evaluate=evaluate,
  )


@pytest.fixture(scope="module")
def hosts(base, superlink):
  """Sites 0 and 1 in one process; site 2 in its own, which starts when it is asked for."""
  for site in SITES:
    superlink.register(make_site_key(base / "keys", site).public)
  running = []

  def begin(*sites):
    out = base / f"host_{len(running)}"
    running.append(start("faulty_host.py", superlink.endpoint.address, base, *sites, out=out))
    return running[-1]

  begin(*SITES[:2])
  yield begin
  for host in running:
    host.kill()
    host.wait()


@pytest.fixture(scope="module")
def run(base, superlink, hosts):
  """A federation that meets every fault of the schedule, and a SuperLink that is killed."""

  def on_round(report):
    if report.round == WAKES:
      (base / "wake").touch()
    if report.round == 5:
      os.kill(superlink.child.pid, signal.SIGKILL)

  watching = Watching(on_round)

  with RunFolder.open(base / "run", {}) as folder:
    plan = make_plan(folder, max_update_norm=10.0)
    with open_grid(superlink) as grid:
      look, last = grid.get_node_ids, []

      def nodes():  # the last site's host is started only when the others are there
        found = look()
        if len(found) == 2 and not last:
          last.append(hosts(SITES[2]))
        return found

      grid.get_node_ids = nodes
      params = run_rounds(grid, plan, len(SITES), watching)
    yield folder, params, watching.said


def lines(run, round, client=None):
  mine = [line for line in run[0].clients() if line["round"] == round]
  return [line for line in mine if client is None or line["client"] == SITES[client]]


def test_a_run_waits_for_its_sites_and_says_so(run):
  waiting = [text for text in run[2] if text.startswith("waiting for 3 sites, up to ")]
  assert waiting and "site_02: here, 12 examples" in run[2]


@pytest.mark.parametrize("round", [round for round in SCHEDULE if round < HANGS])
def test_a_bad_reply_is_refused_by_name_and_the_round_goes_on(run, round):
  faults = SCHEDULE[round]
  for client in ALL:
    (line,) = lines(run, round, client)
    if client in faults:
      assert line["status"].startswith(WHY[faults[client]])
      assert line["num_examples"] is None and line["bytes_up"] > 0
    else:
      assert line["status"] == "ok"


def test_a_site_that_hangs_is_left_behind_and_comes_back(run):
  timeout, *late = lines(run, HANGS, 2)
  assert timeout["status"] == f"timeout: no reply within {DEADLINE:g} s"
  assert timeout["seconds"] >= DEADLINE and timeout["bytes_up"] == 0
  (line,) = late  # of the same round, written when it came
  assert line["status"].startswith("late: discarded in round 1") and line["bytes_up"] > 0
  (owing,) = lines(run, WAKES, 2)
  assert owing["status"] == f"timeout: still owes its reply of round {HANGS}"
  assert lines(run, ROUNDS, 2)[-1]["status"] == "ok"
  others = [lines(run, round, client) for round in (HANGS, WAKES) for client in (0, 1)]
  assert all(line["status"] == "ok" for (line,) in others)


def test_a_round_in_which_all_fail_is_tried_again(run):
  statuses = [line["status"] for line in lines(run, ONCE)]
  assert statuses.count("failed: OSError: disk full") >= 2 and statuses.count("ok") >= 2
  (told,) = [text for text in run[2] if f"Trying round {ONCE} again" in text]
  assert told.startswith(f"round {ONCE}: expected at least 1 valid replies; got 0 of")


def test_a_superlink_that_is_killed_costs_nothing(run, superlink):
  assert any("ended, signal 9" in text for text in superlink.said)
  assert [line["status"] for line in lines(run, 6, 0)] == ["ok"]


def test_the_model_is_what_the_accepted_replies_make_to_the_last_bit(run):
  def accepted(round):
    ok = [line["client"] for line in lines(run, round) if line["status"] == "ok"]
    return [SITES.index(site) for site in ok]

  assert [accepted(round) for round in range(1, 10)] == [[0, 1, 2], *[[0]] * 6, *[[0, 1]] * 2]
  assert_same_bits(run[1], reference(ROUNDS, accepted))
