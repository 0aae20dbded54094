"""What becomes of replies that are not what was agreed on."""

import jax
import numpy as np
import pytest
from flwr.app import MetricRecord

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.faults import FAULTS, Faulty, far, flat, metric, raising
from tests.federation.least_squares import (
  CLIENTS,
  LeastSquares,
  assert_same_bits,
  init_params,
  reference,
)
from tests.federation.watching import Watching


def run_with(app, run):
  return run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)


@pytest.fixture(scope="module")
def without_client_2():
  return reference(1, lambda round: [0, 1, 3])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_client_is_left_out_by_name_and_the_model_is_the_others(
  plan, without_client_2, fault
):
  spoil, why = FAULTS[fault]
  run = plan(rounds=1)
  assert_same_bits(run_with(Faulty(spoil), run), without_client_2)
  lines = {line["client"]: line for line in run.folder.clients()}
  assert len(lines) == CLIENTS
  bad = lines.pop("site_02")
  assert bad["status"].startswith(why) and len(bad["status"]) <= 300
  assert bad["num_examples"] is bad["loss"] is None and bad["bytes_up"] > 0
  assert {line["status"] for line in lines.values()} == {"ok"}
  assert run.folder.metrics()[-1]["clients"] == 3


def test_a_client_that_does_not_answer_is_left_out(plan, without_client_2):
  class Lossy(LocalGrid):
    def pull_messages(self, message_ids):
      return [reply for reply in super().pull_messages(message_ids) if self.keeps(reply)]

    def keeps(self, reply):
      return reply.metadata.message_type != "train" or reply.metadata.src_node_id != 4

  run = plan(rounds=1, deadline=0.3)
  grid = Lossy(SiteApp(LeastSquares(), run.params), CLIENTS)
  assert_same_bits(run_rounds(grid, run, CLIENTS), without_client_2)
  assert run.folder.clients()[2]["status"] == "timeout: no reply within 0.3 s"


class Diverging(LeastSquares):
  def __init__(self, params=np.nan, loss=1.0):
    super().__init__()
    self.params, self.loss = params, loss

  def train(self, params, client, round):
    result = super().train(params, client, round)
    if client != 2:
      return result
    bad = jax.tree.map(lambda x: x * self.params, result.params)
    return result._replace(params=bad, metrics={"loss": self.loss})


def test_a_trainer_that_diverges_is_left_out(plan, without_client_2):
  run = plan(rounds=1)
  assert_same_bits(run_local(run, Diverging(), CLIENTS), without_client_2)
  assert run.folder.clients()[2]["status"].startswith("rejected: mapper/bias: expected finite")


def test_a_trainer_whose_loss_is_not_finite_is_left_out(plan, without_client_2):
  run = plan(rounds=1)
  assert_same_bits(run_local(run, Diverging(1.0, float("inf")), CLIENTS), without_client_2)
  assert "loss: expected a finite number; got inf" in run.folder.clients()[2]["status"]


def test_a_round_fails_when_all_fail_and_goes_on_when_put_right(plan):
  def raise_all(reply):
    raise OSError("disk full")

  run = plan("run")
  with pytest.raises(RoundFailed) as error:
    run_with(Faulty(raise_all, range(CLIENTS), rounds=[3]), run)
  message = str(error.value)
  assert "round 3: expected at least 1 valid replies; got 0 of 4" in message
  for client in range(CLIENTS):
    assert f"site_{client:02d}: failed: OSError: disk full" in message
  assert "start the same command again to go on after round 2" in message
  assert max(line["round"] for line in run.folder.metrics()) == 2
  failed = [line for line in run.folder.clients() if line["round"] == 3]
  assert len(failed) == 2 * CLIENTS  # tried twice; the lines stay until the run goes on
  assert {line["status"] for line in failed} == {"failed: OSError: disk full"}
  run.checkpoints.close()
  run.folder.close()
  # a new process would do the same
  again = plan("run")
  assert_same_bits(run_local(again, LeastSquares(), CLIENTS), reference(4))


def test_a_failed_round_is_tried_again_and_both_attempts_are_recorded(plan):
  left, watching = [CLIENTS], Watching()

  def once(reply):
    left[0] -= 1
    if left[0] >= 0:
      raise OSError("disk full")

  run = plan("run")
  app = Faulty(once, range(CLIENTS), rounds=[3])
  assert_same_bits(run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS, watching), reference(4))
  lines = [line for line in run.folder.clients() if line["round"] == 3]
  assert [line["status"] for line in lines] == ["failed: OSError: disk full"] * 4 + ["ok"] * 4
  (text,) = watching.said
  assert "got 0 of 4" in text and text.endswith("Trying round 3 again")
  train = next(x for x in run.folder.metrics() if (x["round"], x["split"]) == (3, "train"))
  assert train["bytes_up"] == sum(line["bytes_up"] for line in lines)


def test_what_came_for_a_failed_attempt_is_said_to_be_unused(plan):
  left = [1]

  def once(reply):
    left[0] -= 1
    if left[0] >= 0:
      raise OSError("disk full")

  run = plan(rounds=1, min_replies=CLIENTS)
  assert_same_bits(run_with(Faulty(once), run), reference(1))
  unused, failed = "unused: this attempt at the round failed", "failed: OSError: disk full"
  statuses = [line["status"] for line in run.folder.clients()]
  assert statuses == [unused, unused, failed, unused] + ["ok"] * 4


class Slow(LocalGrid):
  """The replies of client 2 arrive only when they are let through."""

  holds = True

  def pull_messages(self, message_ids):
    mine = lambda i: self._replies[i].metadata.src_node_id == 4  # noqa: E731
    train = lambda i: self._replies[i].metadata.message_type == "train"  # noqa: E731
    waiting = [i for i in message_ids if i in self._replies]
    return super().pull_messages([i for i in waiting if not (self.holds and mine(i) and train(i))])


def test_a_late_reply_is_discarded_and_recorded_and_its_site_is_not_asked_meanwhile(plan):
  grid = Slow(SiteApp(LeastSquares(), init_params()), CLIENTS)

  def on_round(report):
    grid.holds = report.round < 2

  run = plan(deadline=0.3)
  params = run_rounds(grid, run, CLIENTS, Watching(on_round))
  missing = lambda round: [0, 1, 3] if round < 3 else range(CLIENTS)  # noqa: E731
  assert_same_bits(params, reference(4, missing))
  lines = [line for line in run.folder.clients() if line["client"] == "site_02"]
  assert [(line["round"], line["status"]) for line in lines] == [
    (1, "timeout: no reply within 0.3 s"),
    (2, "timeout: still owes its reply of round 1"),
    (1, "late: discarded in round 3"),
    (3, "ok"),
    (4, "ok"),
  ]
  assert lines[2]["bytes_up"] == lines[3]["bytes_up"] and "seconds" in lines[2]


def test_an_update_that_moves_too_far_is_left_out(plan, without_client_2):
  run = plan(rounds=1, max_update_norm=10.0)
  assert_same_bits(run_with(Faulty(flat(far)), run), without_client_2)
  status = run.folder.clients()[2]["status"]
  assert status.startswith("rejected: expected an update of L2 norm up to 10 (fed.max_update_norm)")
  assert float(status.split()[-1]) == pytest.approx(1e3 * 15**0.5, rel=1e-2)


@pytest.mark.parametrize("min_replies, fails", [(3, False), (4, True)])
def test_min_replies_counts_valid_ones(plan, min_replies, fails):
  run = plan(rounds=1, min_replies=min_replies)
  if not fails:
    run_with(Faulty(raising), run)
    return
  with pytest.raises(RoundFailed, match=r"at least 4 .* got 3 of 4\. site_02: failed: OSError"):
    run_with(Faulty(raising), run)


def test_what_a_trainer_raises_does_not_leave_the_site(plan, caplog):
  class Careless(LeastSquares):
    def train(self, params, client, round):
      if client == 2:
        raise KeyError("a 64 year old man, /data/patients/0017.png")
      return super().train(params, client, round)

  run = plan(rounds=1)
  run_local(run, Careless(), CLIENTS)
  status = run.folder.clients()[2]["status"]
  assert status.startswith("failed: SiteError: KeyError in local training")
  assert "64" not in (run.folder.path / "clients.jsonl").read_text()
  assert "0017.png" in caplog.text  # the site's own log has it


def test_no_metric_of_a_site_stands_for_what_the_server_says(plan):
  run = plan(rounds=1)
  run_with(Faulty(metric(round=99.0, split=1.0, clients=7.0), range(CLIENTS)), run)
  train = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert [(line["round"], line["clients"]) for line in train] == [(1, CLIENTS)]


@pytest.mark.parametrize("name", ["", "a b", "x" * 81, "loss\n", "\x1b[31m", "é"])
def test_a_metric_by_a_name_that_no_site_of_ours_gives_is_rejected(plan, without_client_2, name):
  def spoil(reply):
    reply.content["metrics"] = MetricRecord({**reply.content["metrics"], name: 1.0})

  run = plan(rounds=1)
  assert_same_bits(run_with(Faulty(spoil), run), without_client_2)
  assert run.folder.clients()[2]["status"].startswith("rejected: expected at most")
