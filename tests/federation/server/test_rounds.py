"""The round loop, on a model that is small enough to be worked out by hand."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.server import aggregation, screening
from afspl_jax.federation.server.rounds import newest_state, run_rounds
from afspl_jax.federation.server.selection import Candidate, select
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import (
  CLIENTS,
  LeastSquares,
  assert_same_bits,
  evaluate,
  init_params,
  reference,
)
from tests.federation.watching import Watching


def without_seconds(lines):
  return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_run_equals_fedavg_by_hand_to_the_last_bit(plan):
  assert_same_bits(run_local(plan(), LeastSquares(), CLIENTS), reference(4))


def test_the_model_learns(plan):
  run = plan(rounds=10)
  run_local(run, LeastSquares(), CLIENTS)
  losses = [line["loss"] for line in run.folder.metrics() if line["split"] == "val"]
  assert losses[-1] < losses[0] / 2


def test_lines_of_a_run(plan):
  reports = []
  run = plan()
  run_local(run, LeastSquares(), CLIENTS, progress=Watching(reports.append))
  lines = run.folder.metrics()
  assert [(line["round"], line["split"]) for line in lines] == [
    (0, "val"), (1, "train"), (2, "train"), (2, "val"), (3, "train"), (4, "train"), (4, "val")
  ]  # fmt: skip
  untrained, train = lines[0], [line for line in lines if line["split"] == "train"]
  assert untrained["loss"] == evaluate(0, init_params())["loss"]
  assert (untrained["bytes_up"], untrained["bytes_down"], untrained["clients"]) == (0, 0, 0)
  for key in ("bytes_up", "bytes_down"):
    assert lines[-1][key] == train[2][key] + train[3][key] > 0
  clients = run.folder.clients()
  assert [c["client"] for c in clients[:CLIENTS]] == [f"site_{i:02d}" for i in range(CLIENTS)]
  assert {c["status"] for c in clients} == {"ok"} and len(clients) == 4 * CLIENTS
  first = [c for c in clients if c["round"] == 1]
  assert train[0]["bytes_up"] == sum(c["bytes_up"] for c in first)
  assert train[0]["loss"] == pytest.approx(
    sum(c["num_examples"] * c["loss"] for c in first) / sum(c["num_examples"] for c in first)
  )
  assert [r.round for r in reports] == [0, 1, 2, 3, 4]
  assert reports[2].train in lines and reports[2].val in lines
  assert reports[2].clients == [c for c in clients if c["round"] == 2]


def test_bytes_are_those_that_travelled(plan):
  travelled = []

  class Counting(LocalGrid):
    def push_messages(self, messages):
      ids = super().push_messages(messages)
      travelled.append([sum(way) for way in zip(*self.transfers.values(), strict=True)])
      return ids

  run = plan(rounds=2)
  grid = Counting(SiteApp(LeastSquares(), run.params), CLIENTS)
  run_rounds(grid, run, CLIENTS)
  train = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert [[line["bytes_down"], line["bytes_up"]] for line in train] == travelled[1:]


def test_the_selected_sites_and_only_they_train(plan):
  run = plan(clients_per_round=2)
  params = run_local(run, LeastSquares(), CLIENTS)
  sites = [f"site_{i:02d}" for i in range(CLIENTS)]
  known = {site: Candidate(10, None) for site in sites}
  chosen = {r: select("uniform", known, 2, 0, r) for r in range(1, 5)}
  found = {r: [c["client"] for c in run.folder.clients() if c["round"] == r] for r in chosen}
  assert found == chosen and len({tuple(c) for c in chosen.values()}) > 1
  assert_same_bits(params, reference(4, lambda r: [sites.index(site) for site in chosen[r]]))


def test_the_order_of_replies_does_not_matter_to_the_last_bit(plan):
  class Reversed(LocalGrid):
    def get_node_ids(self):
      return super().get_node_ids()[::-1]

    def pull_messages(self, message_ids):
      return super().pull_messages(message_ids)[::-1]

  runs, results = [plan("one"), plan("other")], []
  for run, grid_type in zip(runs, (LocalGrid, Reversed), strict=True):
    grid = grid_type(SiteApp(LeastSquares(), run.params), CLIENTS)
    results.append(run_rounds(grid, run, CLIENTS))
  assert_same_bits(*results)
  one, other = (without_seconds(run.folder.metrics()) for run in runs)
  assert one == other


def test_a_reply_is_not_held_twice(plan, monkeypatch):
  read = []

  def screen(site, answer, *rest):
    assert not any(earlier() for earlier in read)
    read.append(weakref.ref(answer))
    return screening.screen(site, answer, *rest)

  monkeypatch.setattr(aggregation, "screen", screen)
  run_local(plan(rounds=1), LeastSquares(), CLIENTS)
  assert len(read) == CLIENTS


def test_a_stopped_run_is_not_a_failed_client(plan):
  class Stopped(LeastSquares):
    def train(self, params, client, round):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_local(plan(), Stopped(), CLIENTS)


def test_a_finished_run_does_nothing_when_started_again(plan):
  first = plan("run")
  params = run_local(first, LeastSquares(), CLIENTS)
  before = (first.folder.path / "metrics.jsonl").read_bytes()
  first.checkpoints.close()
  first.folder.close()

  class Untouched(LeastSquares):
    def train(self, params, client, round):
      raise AssertionError("trained again")

  assert_same_bits(run_local(plan("run"), Untouched(), CLIENTS), params)
  assert (first.folder.path / "metrics.jsonl").read_bytes() == before


class HalfSilent(LeastSquares):
  """Sites send their biases, and of the prompt: two of them its first row, the others none."""

  def train(self, params, client, round):
    result = super().train(params, client, round)
    masks = {
      "prompt": {"global": np.array([[client < 2], [False]])},
      "mapper": {"kernel": np.zeros((self.width, 1), bool), "bias": np.ones(1, bool)},
      "scale": np.zeros((), bool),
    }
    return result._replace(masks=masks)


@pytest.mark.parametrize("weighing, clients", [("coverage", [0, 1]), ("cohort", range(CLIENTS))])
def test_a_row_is_averaged_over_its_senders_or_over_all(plan, weighing, clients):
  run = dataclasses.replace(plan(rounds=1), weighing=weighing)
  params = run_local(run, HalfSilent(), CLIENTS)
  start, dense = init_params(), reference(1)
  assert_same_bits(params["mapper"]["bias"], dense["mapper"]["bias"])
  assert_same_bits(params["scale"], start["scale"])
  assert_same_bits(params["mapper"]["kernel"], start["mapper"]["kernel"])
  rows = params["prompt"]["global"]
  assert_same_bits(rows[1], start["prompt"]["global"][1])
  total = sum(10 + client for client in clients)
  sent = {c: LeastSquares().train(start, c, 1).params["prompt"]["global"][0] for c in (0, 1)}
  wanted = [sent.get(c, start["prompt"]["global"][0]) for c in clients]
  mean = sum((10 + c) * np.float64(row) for c, row in zip(clients, wanted, strict=True)) / total
  np.testing.assert_array_equal(rows[0], mean.astype(np.float32))


def test_with_ema_the_moving_average_is_scored_and_the_newest_params_are_trained(plan):
  decay, scored = 0.6, {}

  def evaluate_all(round, params):
    scored[round] = params
    return {"loss": 0.0}

  run = dataclasses.replace(plan("run"), ema=decay, evaluate=evaluate_all)
  result = run_local(run, LeastSquares(), CLIENTS)
  average = init_params()
  assert_same_bits(scored[0], average)
  for round in range(1, 5):
    d = min(decay, 1 - 1 / round)  # after two rounds: their plain mean
    average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, reference(round))
    for ours, expected in zip(*map(jax.tree.leaves, (scored[round], average)), strict=True):
      np.testing.assert_allclose(ours, expected, rtol=1e-6)
  assert_same_bits(result, scored[4])
  assert_same_bits(newest_state(run)[1]["params"], reference(4))


def test_a_moving_average_survives_a_restart(plan):
  whole = dataclasses.replace(plan("whole"), ema=0.6)
  expected = run_local(whole, LeastSquares(), CLIENTS)
  first = dataclasses.replace(plan("run", rounds=2), ema=0.6)
  run_local(first, LeastSquares(), CLIENTS)
  first.checkpoints.close()
  first.folder.close()
  again = dataclasses.replace(plan("run"), ema=0.6)
  assert_same_bits(run_local(again, LeastSquares(), CLIENTS), expected)


def test_a_damaged_checkpoint_costs_a_round_and_is_said_in_one_line(plan):
  def start(name, rounds):
    watching = Watching()
    run = plan(name, rounds=rounds)
    params = run_local(run, LeastSquares(), CLIENTS, progress=watching)
    run.checkpoints.close()
    run.folder.close()
    return run, params, watching.said

  first, _, said = start("run", 3)
  assert said == []
  damaged = first.folder.path / "checkpoints" / "3"
  largest = max((damaged / "state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:10])
  logged = len((first.folder.path / "wire.jsonl").read_text().splitlines())
  again, params, (line,) = start("run", 4)
  whole, expected, _ = start("whole", 4)
  assert line.startswith(f"{damaged}: damaged (") and line.endswith("continuing after round 2")
  assert_same_bits(params, expected)
  for lines in (RunFolder.metrics, RunFolder.clients):
    assert without_seconds(lines(again.folder)) == without_seconds(lines(whole.folder))
  # Rounds 3 and 4 were sent, the third for the second time: no line of it is removed.
  assert len((again.folder.path / "wire.jsonl").read_text().splitlines()) >= logged + 2 * CLIENTS
