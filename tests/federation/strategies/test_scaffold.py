"""SCAFFOLD from end to end, where it can be worked out by hand: sites fit lines by SGD."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.rounds import newest_state, run_rounds
from afspl_jax.federation.server.selection import select
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import assert_same_bits
from tests.federation.server.lines import (
  CLIENTS,
  EXAMPLES,
  START,
  ZEROS,
  Lines,
  by_hand,
  candidates,
  flat,
  optimum,
)
from tests.federation.strategies.strategy_replies import (
  SITES,
  assert_close,
  bits,
  draw,
  like,
  replies_near,
  reply,
  vector,
)


@pytest.fixture
def lines(plan):
  """Makes a plan and the trainer of its clients, which keep their controls in its folder."""

  def make(name="run", spec="scaffold", trainer=Lines, **fed):
    run = dataclasses.replace(
      plan(name, **fed),
      params=START,
      strategy=strategies.get_strategy(spec, CLIENTS),
      evaluate=lambda round, params: None,
    )
    return run, trainer(run.folder.path / "clients")

  return make


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
@pytest.mark.parametrize("per_round", [2, CLIENTS])
def test_a_run_is_the_papers_algorithm(lines, per_round, server_lr):
  spec = f"scaffold:server_lr={server_lr}"
  run, trainer = lines(spec=spec, rounds=6, clients_per_round=per_round)
  params = run_local(run, trainer, CLIENTS)
  x, c, own = by_hand(6, per_round, server_lr)
  np.testing.assert_allclose(flat(params), x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(flat(newest_state(run)[1]["strategy_state"]["control"]), c, atol=2e-6)
  np.testing.assert_allclose(c, np.mean(list(own.values()), axis=0), atol=1e-12)
  for k in range(CLIENTS):
    kept = trainer.store.load(trainer.site(k), 99, ZEROS) or ZEROS
    np.testing.assert_allclose(flat(kept), own[k], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("server_lr", [1.0, 0.3])
def test_the_servers_step_is_the_papers(server_lr):
  strategy = strategies.get_strategy(f"scaffold:server_lr={server_lr}", SITES)
  rng = np.random.default_rng(0)
  params = draw(rng)
  state, c = strategy.init(params), np.zeros(vector(params).size)
  for number in (7, 3, SITES):
    replies = replies_near(params, rng, number)
    X, D = (
      np.stack([vector(tree) for tree in trees])
      for trees in zip(*((r.params, r.control) for r in replies), strict=True)
    )
    x = vector(params)
    x, c = x + server_lr * np.mean(X - x, axis=0), c + number / SITES * np.mean(D, axis=0)
    expected = like(params, x)
    params, state = strategy.aggregate(params, state, replies)
    assert_close(params, expected)
    np.testing.assert_allclose(vector(state["control"]), c, atol=1e-12)
  sent = strategy.control(params, state)
  assert bits(sent) == bits(like(params, vector(state["control"])))


def test_a_reply_without_a_control_is_named():
  params = draw(np.random.default_rng(0))
  strategy = strategies.get_strategy("scaffold", SITES)
  replies = replies_near(params, np.random.default_rng(0))
  replies[3] = replies[3]._replace(control=None)
  with pytest.raises(ValueError, match="expected a control of every site; got none from s3"):
    strategy.aggregate(params, strategy.init(params), replies)


def distance(spec, per_round, folder, rounds=150):
  """From the optimum, after rounds without a wire in between."""
  strategy, trainer = strategies.get_strategy(spec, CLIENTS), Lines(folder)
  params, state = START, strategy.init(START)
  for round in range(1, rounds + 1):
    given, replies = {}, []
    if isinstance(strategy, strategies.Controlled):
      given["control"] = strategy.control(params, state)
    for site in select("uniform", candidates(), per_round, 0, round):
      sent = trainer.train(params, int(site[-2:]), round, **given)
      replies.append(reply(site, sent.params, EXAMPLES, control=sent.control))
    params, state = strategy.aggregate(params, state, replies)
  return float(np.linalg.norm(flat(params) - optimum()))


def test_many_local_steps_end_at_the_optimum_with_controls_and_elsewhere_without(tmp_path):
  far = distance("fedavg", CLIENTS, tmp_path)
  assert far > 0.1
  assert distance("fedavg", CLIENTS, tmp_path, rounds=300) == pytest.approx(far, rel=1e-5)
  assert distance("scaffold", CLIENTS, tmp_path / "all") < 1e-6
  assert distance("scaffold", 3, tmp_path / "some") < 1e-4


class Killed(Lines):
  """Stops the process in round 4, when one client of it has trained and one has not."""

  def train(self, params, client, round, *, control=None):
    result = super().train(params, client, round, control=control)
    if round == 4:
      raise KeyboardInterrupt
    return result


def test_a_run_killed_within_a_round_goes_on_with_the_controls_from_before_it(lines):
  fed = {"rounds": 6, "clients_per_round": 2}
  whole, trainer = lines("whole", **fed)
  expected = run_local(whole, trainer, CLIENTS)
  first, killed = lines("run", trainer=Killed, **fed)
  with pytest.raises(KeyboardInterrupt):
    run_local(first, killed, CLIENTS)
  assert list(first.folder.path.glob("clients/*/round_000004.safetensors"))
  first.checkpoints.close()
  first.folder.close()
  again, trainer = lines("run", **fed)
  assert_same_bits(run_local(again, trainer, CLIENTS), expected)
  assert_same_bits(*(newest_state(run)[1] for run in (again, whole)))
  states = [
    {str(file.relative_to(run.folder.path)): file.read_bytes() for file in files}
    for run in (again, whole)
    for files in [sorted(run.folder.path.glob("clients/*/*"))]
  ]
  assert states[0] == states[1] and states[0]


class Spoilt(ClientApp):
  """Client 2's honest reply, spoilt."""

  def __init__(self, honest, spoil):
    super().__init__()
    self.honest, self.spoil = honest, spoil

  def __call__(self, message, context):
    reply = self.honest(message, context)
    if message.metadata.message_type == "train" and context.node_config["partition-id"] == 2:
      self.spoil(reply.content)
    return reply


def absent(content):
  raise OSError("disk full")


def control(make):
  return lambda content: content.update(control=make(content["control"]["flat"].numpy()))


def one(values, bad):
  return ArrayRecord({"flat": Array(np.where(np.arange(4) == 1, np.float32(bad), values))})


FAULTS = {
  "missing": (lambda content: content.pop("control"), r"expected the records .*'control'.*; got"),
  "no array": (
    control(lambda v: MetricRecord({"a": 1})),
    "expected the records .*'control': 'Metr",
  ),
  "nan": (control(lambda v: one(v, np.nan)), "control: w: expected finite values; 1 of 3 are not"),
  "infinite": (control(lambda v: one(v, np.inf)), "control: w: expected finite values; 1 of 3"),
  "short": (control(lambda v: ArrayRecord([v[:3]])), "control: expected the one array 'flat'"),
  "empty": (control(lambda v: ArrayRecord()), "control: expected the one array 'flat'; got"),
  "float64": (
    control(lambda v: ArrayRecord({"flat": Array(v.astype(np.float64))})),
    "control: expected float32 of shape",
  ),
  "some rows": (
    control(lambda v: ArrayRecord({"flat": Array(v), "rows": Array(np.zeros(1, np.uint8))})),
    "control: expected the one array 'flat'; got",
  ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_control_that_is_not_what_was_agreed_on_is_left_out_by_name(lines, fault):
  spoil, why = FAULTS[fault]
  fed = {"rounds": 1, "clients_per_round": CLIENTS}
  results = {}
  for name, change in (("run", spoil), ("without", absent)):
    run, trainer = lines(name, **fed)
    app = Spoilt(SiteApp(trainer, START), change)
    run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)
    results[name] = newest_state(run)[1], {x["client"]: x["status"] for x in run.folder.clients()}
  assert_same_bits(results["run"][0], results["without"][0])
  status = results["run"][1]
  assert list(status.values()).count("ok") == CLIENTS - 1
  assert status["site_02"].startswith("rejected: ")
  assert re.search(why, status["site_02"]), status["site_02"]


def test_a_control_that_nobody_asked_for_is_left_out_by_name(lines):
  run, trainer = lines(spec="fedavg", rounds=1, clients_per_round=CLIENTS)
  plant = lambda content: content.update(control=wire.pack(START))  # noqa: E731
  app = Spoilt(SiteApp(trainer, START), plant)
  run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)
  status = {x["client"]: x["status"] for x in run.folder.clients()}
  assert status.pop("site_02").startswith("rejected: expected the records ")
  assert set(status.values()) == {"ok"}


def test_a_site_rejects_a_control_that_is_not_finite(lines):
  _, trainer = lines()
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(START), wire.ROUND: 1})
  records = {wire.ARRAYS: wire.pack(START), wire.CONFIG: config}
  grid, answers = LocalGrid(SiteApp(trainer, START), 1), []
  for value in (0, np.nan):
    sent = {
      wire.CONTROL: wire.pack(jax.tree.map(lambda leaf, v=value: leaf + np.float32(v), START))
    }
    message = Message(RecordDict(records | sent), grid.get_node_ids()[0], wire.TRAIN)
    answers += grid.send_and_receive([message])
  assert not answers[0].has_error()
  assert "b: expected finite values" in answers[1].error.reason
