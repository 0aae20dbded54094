"""Whole runs in one process: what the server ends with, sees, and says when it cannot go on."""

import dataclasses

import jax
import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message
from flwr.clientapp import ClientApp
from least_squares import CLIENTS, LeastSquares, init_params, reference

from afspl_jax.config import Experiment, Privacy, Secure, Uplink
from afspl_jax.federation import release, roll_call, uplink, wire
from afspl_jax.federation.client import make_client_app
from afspl_jax.federation.guard import Guard
from afspl_jax.federation.local_grid import LocalGrid
from afspl_jax.federation.private import WITHIN
from afspl_jax.federation.release import Release
from afspl_jax.federation.roll_call import RoundFailed
from afspl_jax.federation.rounds import run_rounds
from afspl_jax.federation.secure.party import Rules
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import Terms, terms_of
from afspl_jax.federation.server import run_local
from afspl_jax.privacy.ledger import Ledger

TERMS = Terms(Rules(0.6), bits=24, clip=4.0, max_weight=100, counts=(WITHIN,))
STEP = TERMS.quantiser(15, CLIENTS, None).step
DENSE, SHARED = Uplink(select="dense"), Uplink(select="shared", ratio=0.5)


class Recording(LocalGrid):
  """Keeps all that was sent."""

  def __init__(self, *args):
    super().__init__(*args)
    self.asked, self.replies = [], []

  def push_messages(self, messages):
    self.asked += (messages := list(messages))
    return super().push_messages(messages)

  def pull_messages(self, message_ids):
    replies = super().pull_messages(message_ids)
    self.replies += replies
    return replies


class Spoilt(ClientApp):
  """Honest but for some clients at one kind of message."""

  def __init__(self, app, kind, spoil, clients):
    super().__init__()
    self.app, self.kind, self.spoil, self.clients = app, kind, spoil, clients

  def __call__(self, message, context):
    reply = self.app(message, context)
    mine = context.node_config["partition-id"] in self.clients
    if mine and message.metadata.message_type == self.kind:
      return self.spoil(reply) or reply
    return reply


def secured(run, terms=TERMS):
  return dataclasses.replace(run, secure=terms, uplink=DENSE)


def run_with(run, app=None, terms=TERMS):
  app = app or make_client_app(LeastSquares(), run.params, masks=SecureSite(terms))
  grid = Recording(app, CLIENTS)
  return grid, run_rounds(grid, secured(run, terms), CLIENTS)


def spoilt(run, kind, spoil, clients=(2,)):
  app = make_client_app(LeastSquares(), run.params, masks=SecureSite(TERMS))
  return Spoilt(app, kind, spoil, clients)


def raising(reply):
  raise OSError("disk full")


def distance(a, b):
  largest = jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)
  return max(jax.tree.leaves(largest))


def test_a_secure_run_ends_where_a_plain_one_does_within_quantisation(plan):
  plain = run_local(plan("plain", rounds=3), LeastSquares(), CLIENTS)
  run = plan("secure", rounds=3)
  _, params = run_with(run)
  assert 0 < distance(plain, params) < 3 * STEP  # half a step a round, which the next one moves on


def test_examples_weigh_though_nobody_says_how_many_there_are(plan):
  run = plan("secure", rounds=2)
  grid, _ = run_with(run)
  assert {line["num_examples"] for line in run.folder.clients()} == {None}
  hello = [r for r in grid.replies if r.metadata.message_type == "query.hello"]
  assert [r.content["config"]["num-examples"] for r in hello] == [1] * CLIENTS
  alike = plan("alike", rounds=2)
  _, params = run_with(alike, terms=dataclasses.replace(TERMS, max_weight=1))
  plain = run_local(plan("plain", rounds=2), LeastSquares(), CLIENTS)
  assert distance(plain, params) > 1e-4


def test_a_shared_mask_is_summed_over_its_rows_alone(plan):
  class Shared(LeastSquares):
    def train(self, params, client, round):
      result = super().train(params, client, round)
      rows = uplink.drawn(params, SHARED, (0, round))
      sent = jax.tree.map(np.where, rows, jax.device_get(result.params), params)
      return result._replace(params=sent, masks=rows)

  run, plain = plan("secure", rounds=1), plan("plain", rounds=1)
  app = make_client_app(Shared(), run.params, masks=SecureSite(TERMS))
  grid = Recording(app, CLIENTS)
  found = run_rounds(grid, dataclasses.replace(run, secure=TERMS, uplink=SHARED), CLIENTS)
  rows = uplink.drawn(run.params, SHARED, (0, 1))
  moved = jax.tree.map(lambda new, old: new != old, found, run.params)
  for there, mask in zip(jax.tree.leaves(moved), jax.tree.leaves(rows), strict=True):
    assert np.array_equal(there, np.broadcast_to(mask, there.shape))
  assert distance(found, run_local(plain, Shared(), CLIENTS)) < 2 * STEP


def test_an_update_is_clipped_to_the_bound(plan):
  terms = dataclasses.replace(TERMS, clip=0.01)
  run = plan("secure", rounds=1)
  _, params = run_with(run, terms=terms)
  moved = wire.sent_values(params, run.params, None)
  assert [line[WITHIN] for line in run.folder.metrics() if line["split"] == "train"] == [0.0]
  assert 0.002 < np.linalg.norm(moved) <= 0.01 + 1e-6


def test_what_leaves_is_a_closed_list_of_records(plan):
  grid, _ = run_with(plan("secure", rounds=2))
  left = {}
  for reply in grid.replies:
    names = {name: set(record) for name, record in reply.content.items()}
    assert left.setdefault(reply.metadata.message_type, names) == names
  assert left == {
    "query.hello": {"config": {"site", "num-examples"}},
    "query.secure_keys": {"secure": {"keys"}},
    "query.secure_shares": {"secure": {"sealed"}},
    "train": {"arrays": {"masked"}, "config": {"structure"}},
    "query.secure_unmask": {"secure": {"shares"}},
  }


def test_bytes_of_all_stages_are_counted(plan):
  run = plan("secure", rounds=1)
  grid, _ = run_with(run)
  (line,) = [line for line in run.folder.metrics() if line["split"] == "train"]
  of_round = [m for m in grid.asked if m.metadata.message_type != "query.hello"]
  replies = [m for m in grid.replies if m.metadata.message_type != "query.hello"]
  assert len(of_round) == len(replies) == 4 * CLIENTS
  assert line["bytes_down"] == sum(map(wire.record_bytes, of_round))
  assert line["bytes_up"] == sum(map(wire.record_bytes, replies))
  assert line["clients"] == CLIENTS and line[WITHIN] == 1.0 and "loss" not in line


KINDS = {
  "keys": "query.secure_keys",
  "shares": "query.secure_shares",
  "train": "train",
  "unmask": "query.secure_unmask",
}


@pytest.mark.parametrize("stage", KINDS)
def test_a_site_that_fails_in_a_stage_is_named_and_the_others_are_summed(plan, stage):
  run = plan("secure", rounds=1)
  _, params = run_with(run, spoilt(run, KINDS[stage], raising))
  status = {line["client"]: line["status"] for line in run.folder.clients()}
  assert status.pop("site_02") == f"failed: {stage}: OSError: disk full"
  assert set(status.values()) == {"ok"}
  counted = range(CLIENTS) if stage == "unmask" else [0, 1, 3]
  assert distance(params, reference(1, lambda round: counted)) < STEP


@pytest.mark.parametrize("stage", ["shares", "unmask"])
def test_a_site_that_is_late_for_a_stage_is_left_out_and_not_asked_until_it_answers(plan, stage):
  class Slow(Recording):
    def pull_messages(self, message_ids):
      kinds = {m.metadata.message_id: m.metadata for m in self.asked}
      held = [i for i in message_ids if i in kinds and kinds[i].dst_node_id == 4]
      held = [i for i in held if kinds[i].message_type == KINDS[stage]]
      return super().pull_messages([i for i in message_ids if i not in held])

  run = plan("secure", rounds=2, deadline=1.0)
  grid = Slow(make_client_app(LeastSquares(), run.params, masks=SecureSite(TERMS)), CLIENTS)
  params = run_rounds(grid, secured(run), CLIENTS)
  status = [line["status"] for line in run.folder.clients() if line["client"] == "site_02"]
  assert status == [
    f"dropped: no reply to {stage} within 0.1 s",
    "timeout: still owes its reply of round 1",
  ]
  first = range(CLIENTS) if stage == "unmask" else [0, 1, 3]  # its update was there already
  assert distance(params, reference(2, lambda r: first if r == 1 else [0, 1, 3])) < 2 * STEP


def test_below_the_threshold_the_round_fails_and_says_why(plan):
  run = plan("secure", rounds=1, retries=0)
  with pytest.raises(RoundFailed, match=r"expected at least 3 masked updates; got 2\. site_01: fa"):
    run_with(run, spoilt(run, "train", raising, clients=(1, 2)))
  assert len(run.folder.clients()) == CLIENTS


def test_a_failed_round_is_tried_again_under_other_masks(plan):
  run, failures = plan("secure", rounds=1), []

  def once(reply):
    if len(failures) < 2:
      failures.append(reply)
      raise OSError("disk full")

  grid, params = run_with(run, spoilt(run, "train", once, clients=(1, 2)))
  assert distance(params, reference(1)) < STEP
  tries = [r for r in grid.replies if r.metadata.message_type == "train" and not r.has_error()]
  first, second = (tries[i].content["arrays"]["masked"].numpy() for i in (0, 2))
  assert len(tries) == 6 and (first != second).mean() > 0.8


def cut(name):
  def spoil(reply):
    record = reply.content["secure"]
    record[name] = record[name][:-1]

  return spoil


def changed(name):
  def spoil(reply):
    record = reply.content["secure"]
    record[name] = bytes(len(record[name]))

  return spoil


def extra(reply):
  reply.content["secure"]["note"] = "hello"


def plain_update(reply):
  reply.content["arrays"] = wire.pack(init_params())


def flipped(reply):
  masked = reply.content["arrays"]["masked"].numpy().copy()
  reply.content["arrays"]["masked"] = Array(masked[:-1])


@pytest.mark.parametrize(
  ("stage", "spoil", "status"),
  [
    ("keys", cut("keys"), "rejected: keys: secure: keys: expected 96 bytes; got 95"),
    ("keys", changed("keys"), "rejected: expected keys of its own; got another's"),
    ("shares", cut("sealed"), "rejected: shares: secure: sealed: expected 144 bytes; got 143"),
    ("shares", extra, "rejected: shares: secure: expected {'sealed': 'bytes'}; got"),
    ("train", plain_update, "rejected: train: expected the one array 'masked'; got ['flat']"),
    ("train", flipped, "rejected: train: expected uint8 of shape ("),
    ("unmask", cut("shares"), "rejected: unmask: secure: shares: expected 64 bytes; got 63"),
    ("unmask", changed("shares"), "rejected: a share that it gave is not the one it was given"),
  ],
)
def test_what_is_not_agreed_on_is_rejected_and_the_others_are_summed(plan, stage, spoil, status):
  run = plan("secure", rounds=1)
  _, params = run_with(run, spoilt(run, KINDS[stage], spoil))
  found = {line["client"]: line["status"] for line in run.folder.clients()}
  assert found.pop("site_02").startswith(status)
  assert set(found.values()) == {"ok"}
  counted = range(CLIENTS) if stage == "unmask" else [0, 1, 3]
  assert distance(params, reference(1, lambda round: counted)) < STEP


def test_numbers_that_cannot_be_a_sum_end_the_round(plan):
  def rubbish(reply):
    size = reply.content["arrays"]["masked"].numpy().size
    reply.content["arrays"]["masked"] = Array(np.arange(size, dtype=np.uint8))

  run = plan("secure", rounds=1, retries=0)
  with pytest.raises(RoundFailed, match="numbers that cannot be: a client sent what it should not"):
    run_with(run, spoilt(run, "train", rubbish))


def test_with_privacy_the_sum_alone_is_released(plan, tmp_path, monkeypatch):
  """Without its noise it is the clipped mean, over those expected."""
  monkeypatch.setattr(release, "noisy", lambda values, std: values)
  monkeypatch.setattr(release, "gaussian", lambda shape, std: 0.0)
  config = Experiment()
  config.privacy = Privacy(dp="central", noise=1.0, clip=0.05, clipping="adaptive", delta=0.01)
  config.data.num_clients = config.fed.clients_per_round = CLIENTS
  config.uplink = DENSE
  config.secure = Secure(aggregation=True, bits=28)
  found = {}
  for name, terms in (("plain", None), ("secure", terms_of(config))):
    half = Release(config, Ledger(tmp_path / f"{name}.json"))
    guard = Guard(config, Ledger(tmp_path / f"{name}_sites.json"))
    run = dataclasses.replace(plan(name, rounds=2), private=half, secure=terms, uplink=DENSE)
    masks = None if terms is None else SecureSite(terms)
    app = make_client_app(LeastSquares(), run.params, guard=guard, masks=masks)
    params = run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)
    lines = [line for line in run.folder.metrics() if line["split"] == "train"]
    found[name] = params, [(line["clip"], round(line["within_clip"], 3)) for line in lines]
  (plain, logged), (secure, told) = found.values()
  assert distance(plain, secure) < 1e-5
  assert [share for _, share in told] == [share for _, share in logged]
  assert np.allclose([clip for clip, _ in told], [clip for clip, _ in logged], rtol=1e-4)


def test_a_round_of_too_few_for_a_sum_is_one_of_noise_alone(plan, tmp_path, monkeypatch):
  """Where sites are drawn by coins: they are not tossed again until they please."""
  monkeypatch.setattr(release, "noisy", lambda values, std: values)
  monkeypatch.setattr(roll_call, "coins", lambda sites, *_: sorted(sites)[:2])
  config = Experiment(privacy=Privacy(dp="central", noise=1.0, delta=0.01), uplink=DENSE)
  config.secure = Secure(aggregation=True)
  config.data.num_clients, config.fed.clients_per_round = CLIENTS, 2
  config.fed.selection = "poisson"
  half = Release(config, Ledger(tmp_path / "ledger.json"))
  run = plan("few", rounds=1, selection="poisson", clients_per_round=2)
  run = dataclasses.replace(run, private=half)
  grid, params = run_with(run, terms=terms_of(config))
  assert distance(params, run.params) == 0
  found = [(line["client"], line["status"]) for line in run.folder.clients()]
  assert found == [(f"site_0{i}", "dropped: fewer than 3 were drawn") for i in range(2)]
  assert {m.metadata.message_type for m in grid.asked} == {"query.hello"}


# A server that asks for something else.


class Tampering(Recording):
  """Changes what a kind of message asks of client 2."""

  kind, change = "", staticmethod(lambda content: None)

  def push_messages(self, messages):
    messages = list(messages)
    for message in messages:
      if message.metadata.message_type == self.kind and message.metadata.dst_node_id == 4:
        self.change(message.content)
    return super().push_messages(messages)


def numbers(*clients):
  return np.array(clients, "<u4").tobytes()


def without_secure(content):
  del content["secure"]


def setting(**values):
  def change(content):
    content["secure"] = ConfigRecord({**content["secure"], **values})

  return change


def later_round(content):
  content["config"] = ConfigRecord({**content["config"], "round": 2})


@pytest.mark.parametrize(
  ("stage", "change", "why"),
  [
    ("train", without_secure, "sends updates under masks alone"),
    ("train", setting(session=bytes(16)), "expected the session that this site has keys of"),
    ("train", later_round, "expected round 1 of the session; got 2"),
    ("train", setting(peers=numbers(0, 1), sealed=bytes(96)), "a text that its sender sealed"),
    ("train", setting(peers=numbers(3), sealed=bytes(48)), "at least 3 of this client and its nei"),
    ("train", setting(peers=numbers(1, 0), sealed=bytes(96)), "in order, each once"),
    ("shares", setting(clients=5), "expected 4 neighbours among 5 clients"),
    ("shares", setting(number=1), "expected other clients' numbers"),
    ("shares", setting(peers=numbers(0, 1, 9)), "expected other clients' numbers"),
    ("shares", setting(keys=bytes(288)), "expected keys of every neighbour's own"),
    ("shares", setting(clients=2, peers=numbers(0), keys=bytes(96)), "at least 3 clients in"),
    ("unmask", setting(lost=numbers(0)), "got [0] as both"),
    ("unmask", setting(survivors=numbers(0)), "each neighbour that shared to be a survivor"),
    ("unmask", setting(survivors=numbers(0), lost=numbers(1, 3)), "expected at least 3"),
    ("keys", setting(session=bytes(4)), "expected 16 bytes; got 4"),
    ("keys", setting(round="1"), "expected {'round': 'int', 'session': 'bytes'}"),
  ],
)
def test_a_site_refuses_what_its_own_settings_do_not_provide_for(plan, stage, change, why):
  run = plan("secure", rounds=1, retries=0)
  app = make_client_app(LeastSquares(), run.params, masks=SecureSite(TERMS))
  grid = Tampering(app, CLIENTS)
  grid.kind, grid.change = KINDS[stage], change
  run_rounds(grid, secured(run), CLIENTS)
  status = {line["client"]: line["status"] for line in run.folder.clients()}
  assert status["site_02"].startswith(f"failed: {stage}: ") and why in status["site_02"]


def test_a_second_unmasking_and_an_old_session_are_refused(plan):
  run = plan("secure", rounds=1)
  grid, _ = run_with(run)
  for kind, why in (("query.secure_unmask", "it after done"), ("query.secure_keys", "used befo")):
    (asked, *_) = [m for m in grid.asked if m.metadata.message_type == kind]
    again = Message(asked.content, asked.metadata.dst_node_id, kind, group_id="1")
    (reply,) = grid.send_and_receive([again])
    assert reply.has_error() and why in reply.error.reason
