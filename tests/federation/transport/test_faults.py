"""Sites and hosts that fail, in one run: real processes, TLS."""

import os
import signal
import time

import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.server import exchange
from afspl_jax.federation.server.rounds import Plan, run_rounds
from afspl_jax.federation.transport.server_executor import open_grid
from afspl_jax.federation.transport.site_keys import make_site_key
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import assert_same_bits, evaluate, init_params, reference
from tests.federation.transport.faulty_host import ALL, HANGS, ONCE, SCHEDULE, WAKES, WHY
from tests.federation.transport.hosts import start
from tests.federation.watching import Watching

SITES = [f"site_{i:02d}" for i in ALL]
ROUNDS = 12
# Seconds. No round but the one with a hanging site takes this long, however busy the machine is. In
# that one, the server's clock skips the deadline once the other sites have replied.
DEADLINE = 600.0


class SkippingClock:
  """Stands in for the module `time` where the server waits for replies."""

  def __init__(self):
    self.skipped, self.sleep = 0.0, time.sleep

  def monotonic(self):
    return time.monotonic() + self.skipped


def skip_deadline_when_replied(grid, clock, asked_round):
  """Moves the clock past the deadline once all sites but one have replied in round HANGS."""
  push, pull = grid.push_messages, grid.pull_messages
  replies = []

  def push_messages(messages):
    replies.clear()
    return push(messages)

  def pull_messages(message_ids):
    new = pull(message_ids)
    replies.extend(new)
    if asked_round() == HANGS and len(replies) == len(SITES) - 1 and new:
      clock.skipped += DEADLINE
    return new

  grid.push_messages, grid.pull_messages = push_messages, pull_messages


def make_plan(folder, **fed):
  return Plan(
    params=init_params(),
    strategy=strategies.get_strategy("fedavg"),
    fed=Fed(**{"rounds": ROUNDS, "clients_per_round": len(SITES), "deadline": DEADLINE, **fed}),
    seed=0,
    folder=folder,
    checkpoints=Checkpoints(folder.path / "checkpoints"),
    evaluate=evaluate,
  )


@pytest.fixture(scope="module")
def module_patch():
  with pytest.MonkeyPatch.context() as patch:
    yield patch


@pytest.fixture(scope="module")
def hosts(base, superlink):
  """Starts sites 0 and 1 in one process; the fixture's value starts others in their own."""
  for site in SITES:
    superlink.register(make_site_key(base / "keys", site).public)
  running = []

  def begin(*sites):
    out = base / f"host_{len(running)}"
    running.append(start("faulty_host.py", superlink.service.address, base, *sites, out=out))
    return running[-1]

  begin(*SITES[:2])
  yield begin
  for host in running:
    host.kill()
    host.wait()


@pytest.fixture(scope="module")
def run(base, superlink, hosts, module_patch):
  """A federation with every failure of the schedule, and a SuperLink that is killed."""
  finished, clock = [0], SkippingClock()

  def on_round(report):
    finished.append(report.round)
    if report.round == WAKES:
      (base / "wake").touch()
    if report.round == 5:
      os.kill(superlink.child.pid, signal.SIGKILL)

  watching = Watching(on_round)

  with RunFolder.open(base / "run", {}) as folder:
    plan = make_plan(folder, max_update_norm=10.0)
    with open_grid(superlink) as grid:
      look, last = grid.get_node_ids, []

      def nodes():  # starts the last site's host once the others are connected
        found = look()
        if len(found) == 2 and not last:
          last.append(hosts(SITES[2]))
        return found

      grid.get_node_ids = nodes
      module_patch.setattr(exchange, "time", clock)
      skip_deadline_when_replied(grid, clock, lambda: finished[-1] + 1)
      params = run_rounds(grid, plan, len(SITES), watching)
    yield folder, params, watching.said + watching.sites


def lines(run, round, client=None):
  mine = [line for line in run[0].clients() if line["round"] == round]
  return [line for line in mine if client is None or line["client"] == SITES[client]]


def test_a_run_waits_for_its_sites_and_reports_it(run):
  waiting = [text for text in run[2] if text.startswith("waiting for 3 sites, up to ")]
  assert waiting and "site_02: here, 12 examples" in run[2]


@pytest.mark.parametrize("round", [round for round in SCHEDULE if round < HANGS])
def test_an_invalid_reply_is_rejected_and_the_round_continues(run, round):
  faults = SCHEDULE[round]
  for client in ALL:
    (line,) = lines(run, round, client)
    if client in faults:
      assert line["status"].startswith(WHY[faults[client]])
      assert line["num_examples"] is None and line["bytes_up"] > 0
    else:
      assert line["status"] == "ok"


def test_a_site_that_hangs_is_skipped_and_takes_part_again(run):
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


def test_a_round_in_which_all_sites_fail_is_repeated(run):
  statuses = [line["status"] for line in lines(run, ONCE)]
  assert statuses.count("failed: OSError: disk full") >= 2 and statuses.count("ok") >= 2
  (notice,) = [text for text in run[2] if f"Trying round {ONCE} again" in text]
  assert notice.startswith(f"round {ONCE}: expected at least 1 valid replies; got 0 of")


def test_a_killed_superlink_loses_no_reply(run, superlink):
  assert any("ended, signal 9" in text for text in superlink.notices)
  assert [line["status"] for line in lines(run, 6, 0)] == ["ok"]


def test_the_model_is_bit_identical_to_the_average_of_the_accepted_replies(run):
  def accepted(round):
    ok = [line["client"] for line in lines(run, round) if line["status"] == "ok"]
    return [SITES.index(site) for site in ok]

  assert [accepted(round) for round in range(1, 10)] == [[0, 1, 2], *[[0]] * 6, *[[0, 1]] * 2]
  assert_same_bits(run[1], reference(ROUNDS, accepted))
