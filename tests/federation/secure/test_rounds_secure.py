"""Whole runs in one process: what the server ends with, sees, and says when it cannot go on."""

import dataclasses

import jax
import numpy as np
import pytest

from afspl_jax.config.experiment import Experiment, Privacy, Secure, Uplink
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import WITHIN
from afspl_jax.federation.privacy import server_release
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.server_release import Release
from afspl_jax.federation.privacy.update_clipping import UpdateClipping
from afspl_jax.federation.protocol import uplink, wire
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import terms_of
from afspl_jax.federation.server import roll_call
from afspl_jax.federation.server.aggregation import PrivateAggregation, SecureAggregation
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import CLIENTS, LeastSquares, reference
from tests.federation.secure.secure_runs import (
  DENSE,
  KINDS,
  SIGNED,
  STEP,
  TERMS,
  Recording,
  distance,
  raising,
  run_with,
  secured,
  spoilt,
  terms_with,
)

SHARED = Uplink(select="shared", ratio=0.5)


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
      rows = uplink.shared_rows(params, SHARED, (0, round))
      sent = jax.tree.map(np.where, rows, jax.device_get(result.params), params)
      return result._replace(params=sent, masks=rows)

  run, plain = plan("secure", rounds=1), plan("plain", rounds=1)
  app = SiteApp(Shared(), run.params, masking=SecureSite(TERMS))
  grid = Recording(app, CLIENTS)
  shared = SecureAggregation(TERMS, SHARED, run.seed)
  found = run_rounds(grid, dataclasses.replace(run, aggregation=shared), CLIENTS)
  rows = uplink.shared_rows(run.params, SHARED, (0, 1))
  moved = jax.tree.map(lambda new, old: new != old, found, run.params)
  for there, mask in zip(jax.tree.leaves(moved), jax.tree.leaves(rows), strict=True):
    assert np.array_equal(there, np.broadcast_to(mask, there.shape))
  assert distance(found, run_local(plain, Shared(), CLIENTS)) < 2 * STEP


def test_an_update_is_clipped_to_the_bound(plan):
  terms = dataclasses.replace(TERMS, clip=0.01)
  run = plan("secure", rounds=1)
  _, params = run_with(run, terms=terms)
  moved = wire.sent_values(params, run.params, uplink.everywhere(run.params))
  assert [line[WITHIN] for line in run.folder.metrics() if line["split"] == "train"] == [0.0]
  assert 0.002 < np.linalg.norm(moved) <= 0.01 + 1e-6


def test_what_leaves_is_a_allow_list_of_records(plan):
  grid, _ = run_with(plan("secure", rounds=2))
  signed, _ = run_with(plan("signed", rounds=1), terms=SIGNED)
  (kind,) = {r.metadata.message_type for r in signed.replies} - {
    r.metadata.message_type for r in grid.replies
  }
  confirmed = [r.content for r in signed.replies if r.metadata.message_type == kind]
  assert kind == "query.secure_confirm" and len(confirmed) == CLIENTS
  assert {(name, *record) for reply in confirmed for name, record in reply.items()} == {
    ("secure", "signature")
  }
  left = {}
  for reply in grid.replies:
    names = {name: set(record) for name, record in reply.content.items()}
    assert left.setdefault(reply.metadata.message_type, names) == names
  assert left == {
    "query.hello": {"config": {"site", "num-examples"}},
    "query.secure_keys": {"secure": {"identity", "keys", "signature"}},
    "query.secure_shares": {"secure": {"sealed"}},
    "train": {"arrays": {"masked"}, "config": {"structure"}, "secure": {"signature"}},
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


@pytest.mark.parametrize("stage", KINDS)
def test_a_site_that_fails_in_a_stage_is_named_and_the_others_are_summed(plan, stage):
  run = plan("secure", rounds=1)
  terms = terms_with(stage)
  _, params = run_with(run, spoilt(run, KINDS[stage], raising, terms=terms), terms)
  status = {line["client"]: line["status"] for line in run.folder.clients()}
  assert status.pop("site_02") == f"failed: {stage}: OSError: disk full"
  assert set(status.values()) == {"ok"}
  counted = range(CLIENTS) if stage in ("confirm", "unmask") else [0, 1, 3]
  assert distance(params, reference(1, lambda round: counted)) < STEP


@pytest.mark.parametrize("stage", ["shares", "confirm", "unmask"])
def test_a_site_that_is_late_for_a_stage_is_left_out_and_not_asked_until_it_answers(plan, stage):
  class Slow(Recording):
    def pull_messages(self, message_ids):
      kinds = {m.metadata.message_id: m.metadata for m in self.asked}
      held = [i for i in message_ids if i in kinds and kinds[i].dst_node_id == 4]
      held = [i for i in held if kinds[i].message_type == KINDS[stage]]
      return super().pull_messages([i for i in message_ids if i not in held])

  run = plan("secure", rounds=2, deadline=1.0)
  terms = terms_with(stage)
  grid = Slow(SiteApp(LeastSquares(), run.params, masking=SecureSite(terms)), CLIENTS)
  params = run_rounds(grid, secured(run, terms), CLIENTS)
  status = [line["status"] for line in run.folder.clients() if line["client"] == "site_02"]
  assert status == [
    f"dropped: no reply to {stage} within 0.1 s",
    "timeout: still owes its reply of round 1",
  ]
  first = range(CLIENTS) if stage in ("confirm", "unmask") else [0, 1, 3]
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


def test_with_privacy_the_sum_alone_is_released(plan, tmp_path, monkeypatch):
  """Without its noise it is the clipped mean, over those expected."""
  monkeypatch.setattr(server_release, "noisy", lambda values, std: values)
  config = Experiment()
  config.privacy = Privacy(dp="central", noise=1.0, clip=0.05, clipping="adaptive", delta=0.01)
  config.data.num_clients = config.fed.clients_per_round = CLIENTS
  config.uplink = DENSE
  config.secure = Secure(aggregation=True, bits=28)
  found = {}
  for name, terms in (("plain", None), ("secure", terms_of(config))):
    half = Release(config, Ledger(tmp_path / f"{name}.json"))
    clipping = UpdateClipping(config, Ledger(tmp_path / f"{name}_sites.json"))
    secure = None if terms is None else SecureAggregation(terms, DENSE, config.seed)
    run = dataclasses.replace(plan(name, rounds=2), aggregation=PrivateAggregation(half, secure))
    masks = None if terms is None else SecureSite(terms)
    app = SiteApp(LeastSquares(), run.params, clipping=clipping, masking=masks)
    params = run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)
    lines = [line for line in run.folder.metrics() if line["split"] == "train"]
    found[name] = params, [(line["clip"], round(line["within_clip"], 3)) for line in lines]
  (plain, logged), (secure, shown) = found.values()
  assert distance(plain, secure) < 1e-5
  assert [share for _, share in shown] == [share for _, share in logged]
  assert np.allclose([clip for clip, _ in shown], [clip for clip, _ in logged], rtol=1e-4)


def test_a_round_of_too_few_for_a_sum_is_one_of_noise_alone(plan, tmp_path, monkeypatch):
  """A Poisson sample that is too small is not drawn again."""
  monkeypatch.setattr(server_release, "noisy", lambda values, std: values)
  monkeypatch.setattr(roll_call, "poisson_sample", lambda sites, *_: sorted(sites)[:2])
  config = Experiment(privacy=Privacy(dp="central", noise=1.0, delta=0.01), uplink=DENSE)
  config.secure = Secure(aggregation=True)
  config.data.num_clients, config.fed.clients_per_round = CLIENTS, 2
  config.fed.selection = "poisson"
  half = Release(config, Ledger(tmp_path / "ledger.json"))
  run = plan("few", rounds=1, selection="poisson", clients_per_round=2)
  terms = terms_of(config)
  secure = SecureAggregation(terms, DENSE, config.seed)
  run = dataclasses.replace(run, aggregation=PrivateAggregation(half, secure))
  app = SiteApp(LeastSquares(), run.params, masking=SecureSite(terms))
  grid = Recording(app, CLIENTS)
  params = run_rounds(grid, run, CLIENTS)
  assert distance(params, run.params) == 0
  found = [(line["client"], line["status"]) for line in run.folder.clients()]
  assert found == [(f"site_0{i}", "dropped: fewer than 3 were drawn") for i in range(2)]
  assert {m.metadata.message_type for m in grid.asked} == {"query.hello"}
