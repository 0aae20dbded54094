import jax
import numpy as np
import pytest
from flwr.app import (
  Array,
  ArrayRecord,
  ConfigRecord,
  Context,
  Error,
  Message,
  MetricRecord,
  RecordDict,
)
from flwr.clientapp import ClientApp
from least_squares import LeastSquares, init_params, predict

from afspl_jax.checkpoint import Checkpoints
from afspl_jax.config import Fed
from afspl_jax.federation import strategies, wire
from afspl_jax.federation.client import LocalResult, make_client_app
from afspl_jax.federation.local_grid import LocalGrid
from afspl_jax.federation.rounds import MAX_EXAMPLES, Plan, RoundFailed, run_rounds
from afspl_jax.federation.selection import select
from afspl_jax.federation.server import make_server_app, meet, run_local
from afspl_jax.run_folder import RunFolder

CLIENTS = 4


def evaluate(round, params):
  if round % 2:
    return None
  x, y = LeastSquares().data(1, 0)
  return {"loss": float(((predict(params, x) - y) ** 2).mean())}


@pytest.fixture
def plan(tmp_path):
  opened = []

  def make(name="run", on_round=lambda report: None, **fed):
    folder = RunFolder.open(tmp_path / name, {})
    opened.append(folder)
    return Plan(
      params=init_params(),
      strategy=strategies.get("fedavg"),
      fed=Fed(**{"rounds": 4, "clients_per_round": CLIENTS, **fed}),
      seed=0,
      folder=folder,
      checkpoints=Checkpoints(folder.path / "checkpoints"),
      evaluate=evaluate,
      on_round=on_round,
    )

  yield make
  for folder in opened:
    folder.close()


def without_seconds(lines):
  return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_bits(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.shape == y.shape and x.tobytes() == y.tobytes()


def reference(rounds, clients_of=lambda round: range(CLIENTS), params=None):
  """FedAvg by hand, in NumPy."""
  params, trainer = params or init_params(), LeastSquares()
  for round in range(1, rounds + 1):
    results = [jax.device_get(trainer.train(params, c, round)) for c in clients_of(round)]
    total = sum(r.num_examples for r in results)
    params = jax.tree.map(
      lambda *leaves, results=results, total=total: np.asarray(
        sum(r.num_examples * x.astype(np.float64) for r, x in zip(results, leaves, strict=True))
        / total
      ).astype(np.float32),
      *(r.params for r in results),
    )
  return params


def test_a_run_equals_fedavg_by_hand_to_the_last_bit(plan):
  assert_same_bits(run_local(plan(), LeastSquares(), CLIENTS), reference(4))


def test_the_model_learns(plan):
  run = plan(rounds=10)
  run_local(run, LeastSquares(), CLIENTS)
  losses = [line["loss"] for line in run.folder.metrics() if line["split"] == "val"]
  assert losses[-1] < losses[0] / 2


def test_lines_of_a_run(plan):
  reports = []
  run = plan(on_round=reports.append)
  run_local(run, LeastSquares(), CLIENTS)
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
    def send_and_receive(self, messages, *, timeout=None):
      replies = super().send_and_receive(messages, timeout=timeout)
      travelled.append([sum(way) for way in zip(*self.transfers.values(), strict=True)])
      return replies

  run = plan(rounds=2)
  grid = Counting(make_client_app(LeastSquares(), run.params), CLIENTS)
  run_rounds(grid, meet(grid, wire.structure_digest(run.params), CLIENTS), run)
  train = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert [[line["bytes_down"], line["bytes_up"]] for line in train] == travelled[1:]


def test_the_selected_sites_and_only_they_train(plan):
  run = plan(clients_per_round=2)
  params = run_local(run, LeastSquares(), CLIENTS)
  sites = [f"site_{i:02d}" for i in range(CLIENTS)]
  chosen = {r: select(sites, 2, 0, r) for r in range(1, 5)}
  found = {r: [c["client"] for c in run.folder.clients() if c["round"] == r] for r in chosen}
  assert found == chosen and len({tuple(c) for c in chosen.values()}) > 1
  assert_same_bits(params, reference(4, lambda r: [sites.index(site) for site in chosen[r]]))


def test_the_order_of_replies_does_not_matter_to_the_last_bit(plan):
  class Reversed(LocalGrid):
    def get_node_ids(self):
      return super().get_node_ids()[::-1]

    def send_and_receive(self, messages, *, timeout=None):
      return super().send_and_receive(messages, timeout=timeout)[::-1]

  runs, results = [plan("one"), plan("other")], []
  for run, grid_type in zip(runs, (LocalGrid, Reversed), strict=True):
    grid = grid_type(make_client_app(LeastSquares(), run.params), CLIENTS)
    results.append(run_rounds(grid, meet(grid, wire.structure_digest(run.params), CLIENTS), run))
  assert_same_bits(*results)
  one, other = (without_seconds(run.folder.metrics()) for run in runs)
  assert one == other


class Faulty(ClientApp):
  """Client 2's honest reply, spoilt; every reply is still a real message."""

  def __init__(self, spoil, clients=(2,), rounds=range(99)):
    super().__init__()
    self.honest = make_client_app(LeastSquares(), init_params())
    self.spoil, self.clients, self.rounds = spoil, clients, rounds

  def __call__(self, message, context):
    reply = self.honest(message, context)
    client = context.node_config["partition-id"]
    if message.metadata.message_type != "train" or client not in self.clients:
      return reply
    if message.content["config"]["round"] not in self.rounds:
      return reply
    return self.spoil(reply) or reply


def raising(reply):
  raise OSError("disk full")


def erring(reply):
  reply.content = None
  reply.error = Error(8)


def no_content(reply):
  reply.content = RecordDict()


def flat(change):
  def spoil(reply):
    change(reply.content["arrays"])

  return spoil


def nan(arrays):
  values = arrays["flat"].numpy().copy()
  values[3] = np.nan
  arrays["flat"] = Array(values)


def of_shape(*shape):
  return lambda arrays: arrays.update(flat=Array(np.zeros(shape, np.float32)))


def metric(**values):
  def spoil(reply):
    reply.content["metrics"] = MetricRecord(
      {**reply.content["metrics"], **{k.replace("_", "-"): v for k, v in values.items()}}
    )

  return spoil


def no_count(reply):
  del reply.content["metrics"]["num-examples"]


def extra_record(reply):
  reply.content["surprise"] = ConfigRecord({"a": 1})


def wrong_type(reply):
  reply.content["arrays"] = MetricRecord({"a": 1})


def other_structure(reply):
  reply.content["config"] = ConfigRecord({"structure": "0123"})


def chatty(reply):
  raise OSError("a\nlong " + "word " * 500)


FAULTS = {
  "raises": (raising, "failed: OSError: disk full"),
  "crashes": (erring, "failed: Flower error 8"),
  "says a lot": (chatty, "failed: OSError: a long word"),
  "nan": (flat(nan), "rejected: mapper/kernel: expected finite values; 1 of 6 are not"),
  "wrong size": (flat(of_shape(3)), "rejected: expected float32 of shape (15,)"),
  "broadcastable": (flat(of_shape(15, 1)), "rejected: expected float32 of shape (15,)"),
  "extra array": (
    flat(lambda arrays: arrays.update(x=Array(np.zeros(1)))),
    "rejected: expected the one array 'flat'; got ['flat', 'x']",
  ),
  "no array": (flat(ArrayRecord.clear), "rejected: expected the one array 'flat'; got []"),
  "empty reply": (no_content, "rejected: expected the records"),
  "extra record": (extra_record, "rejected: expected the records"),
  "record of another type": (wrong_type, "rejected: expected the records"),
  "other structure": (other_structure, "rejected: expected params of structure"),
  "zero examples": (metric(num_examples=0), "rejected: num-examples: expected an int from 1"),
  "negative examples": (metric(num_examples=-3), "rejected: num-examples: expected an int from 1"),
  "nan examples": (metric(num_examples=float("nan")), "rejected: num-examples: expected an int"),
  "float examples": (metric(num_examples=8.0), "rejected: num-examples: expected an int"),
  "list of examples": (metric(num_examples=[8]), "rejected: num-examples: expected an int"),
  "absurd examples": (metric(num_examples=2**62), "rejected: num-examples: expected an int from"),
  "too many examples": (metric(num_examples=MAX_EXAMPLES + 1), "rejected: num-examples"),
  "no examples": (no_count, "rejected: num-examples: expected an int"),
  "nan loss": (metric(loss=float("nan")), "rejected: loss: expected a finite number; got nan"),
  "list of losses": (metric(loss=[1.0]), "rejected: loss: expected a finite number"),
}


def run_with(app, run):
  grid = LocalGrid(app, CLIENTS)
  return run_rounds(grid, meet(grid, wire.structure_digest(run.params), CLIENTS), run)


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
    def send_and_receive(self, messages, *, timeout=None):
      replies = super().send_and_receive(messages, timeout=timeout)
      return replies if len(self.transfers) == 1 else [r for r in replies if self.keeps(r)]

    def keeps(self, reply):
      return reply.metadata.message_type != "train" or reply.metadata.src_node_id != 4

  run = plan(rounds=1)
  grid = Lossy(make_client_app(LeastSquares(), run.params), CLIENTS)
  params = run_rounds(grid, meet(grid, wire.structure_digest(run.params), CLIENTS), run)
  assert_same_bits(params, without_client_2)
  assert run.folder.clients()[2]["status"] == "failed: no reply"


class Diverging(LeastSquares):
  def __init__(self, params=np.nan, loss=1.0):
    super().__init__()
    self.params, self.loss = params, loss

  def train(self, params, client, round):
    result = super().train(params, client, round)
    if client != 2:
      return result
    bad = jax.tree.map(lambda x: x * self.params, result.params)
    return LocalResult(bad, result.num_examples, {"loss": self.loss})


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
  assert max(line["round"] for line in run.folder.clients()) == 2
  run.checkpoints.close()
  run.folder.close()
  # a new process would do the same
  again = plan("run")
  assert_same_bits(run_local(again, LeastSquares(), CLIENTS), reference(4))


@pytest.mark.parametrize("min_replies, fails", [(3, False), (4, True)])
def test_min_replies_counts_valid_ones(plan, min_replies, fails):
  run = plan(rounds=1, min_replies=min_replies)
  if not fails:
    run_with(Faulty(raising), run)
    return
  with pytest.raises(RoundFailed, match=r"at least 4 .* got 3 of 4\. site_02: failed: OSError"):
    run_with(Faulty(raising), run)


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


def test_a_server_with_another_model_is_refused_by_the_client(plan):
  run = plan()
  app = make_client_app(LeastSquares(), {"other": np.zeros(3, np.float32)})
  with pytest.raises(RuntimeError, match=r"site_00: expected params of structure .* Run the same"):
    context = Context(1, 1, {}, RecordDict(), {})
    make_server_app(run, CLIENTS)(LocalGrid(app, CLIENTS), context)
  grid = LocalGrid(app, 1)
  content = RecordDict({"arrays": wire.pack(init_params()), "config": ConfigRecord({"round": 1})})
  (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train")])
  assert "structure of the params: this site has" in reply.error.reason


def test_sites_are_told_apart_by_name_not_by_node(plan):
  class Backwards(LeastSquares):
    def site(self, client):
      return f"site_{CLIENTS - client}"

  grid = LocalGrid(make_client_app(Backwards(), init_params()), CLIENTS)
  nodes = meet(grid, wire.structure_digest(init_params()), CLIENTS)
  assert list(nodes) == ["site_1", "site_2", "site_3", "site_4"]
  assert list(nodes.values()) == sorted(grid.get_node_ids(), reverse=True)


def test_two_sites_of_one_name_are_refused():
  class Same(LeastSquares):
    def site(self, client):
      return "clinic"

  grid = LocalGrid(make_client_app(Same(), init_params()), 2)
  with pytest.raises(RuntimeError, match="expected a site name of its own; got 'clinic'"):
    meet(grid, wire.structure_digest(init_params()), 2)


def test_missing_sites_are_an_error_not_a_smaller_federation():
  grid = LocalGrid(make_client_app(LeastSquares(), init_params()), 3)
  with pytest.raises(RuntimeError, match=r"expected 5 sites within 0.05 s; got 3"):
    meet(grid, wire.structure_digest(init_params()), 5, 0.05)


def test_what_a_trainer_raises_does_not_leave_the_site(plan, caplog):
  class Careless(LeastSquares):
    def train(self, params, client, round):
      if client == 2:
        raise KeyError("a 64 year old man, /data/patients/0017.png")
      return super().train(params, client, round)

  run = plan(rounds=1)
  run_local(run, Careless(), CLIENTS)
  status = run.folder.clients()[2]["status"]
  assert status.startswith("failed: SiteFault: KeyError in local training")
  assert "64" not in (run.folder.path / "clients.jsonl").read_text()
  assert "0017.png" in caplog.text  # the site's own log has it


def test_no_metric_of_a_site_stands_for_what_the_server_says(plan):
  run = plan(rounds=1)
  run_with(Faulty(metric(round=99.0, split=1.0, clients=7.0), range(CLIENTS)), run)
  train = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert [(line["round"], line["clients"]) for line in train] == [(1, CLIENTS)]
