"""A server drops one site each round; and a site sends more than it may."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from tests.federation.least_squares import CLIENTS, LeastSquares, reference
from tests.federation.secure.lying_server import VICTIM
from tests.federation.secure.secure_round_in_memory import SecureRound
from tests.federation.secure.secure_runs import KINDS, STEP, TERMS, Recording, distance, secured


def dropped(number):
  """A server that claims that an update did not arrive."""

  class Dropping(Recording):
    def pull_messages(self, ids):
      return [
        reply
        for reply in super().pull_messages(ids)
        if (reply.metadata.message_type, reply.metadata.src_node_id) != ("train", 2 + number)
      ]

  return Dropping


def test_a_repeated_round_without_one_site_is_refused_by_all_others(plan):
  """Its sum and that of the first attempt would differ by this site's update alone."""
  masking = SecureSite(TERMS)
  first = plan("all", rounds=1)
  app = SiteApp(LeastSquares(), first.params, masking=masking)
  params = run_rounds(Recording(app, CLIENTS), secured(first), CLIENTS)
  assert distance(params, reference(1)) < STEP
  for number in range(CLIENTS):
    run = plan(f"without {number}", rounds=1, retries=0, deadline=0.5)
    grid = dropped(number)(app, CLIENTS)
    with pytest.raises(RoundFailed, match="at least 3 signatures over the survivors; got 0") as why:
      run_rounds(grid, secured(run), CLIENTS)
    line = "confirm: PartyError: round 1: expected the sites of its sum that was revealed before; "
    assert str(why.value).count(line) == 3
    kinds = [r.metadata.message_type for r in grid.replies if not r.has_error()]
    assert kinds.count("train") == CLIENTS and KINDS["unmask"] not in kinds
  # Over the same sites the round may be repeated: it tells nothing new.
  again = plan("again", rounds=1)
  assert distance(run_rounds(Recording(app, CLIENTS), secured(again), CLIENTS), params) == 0


def test_what_the_server_holds_of_a_refused_round_is_uniform():
  """It has every masked update twice, and the sum of one set: no difference of them is clear."""
  size = 3000
  updates = [np.zeros(size)] * 5
  first = SecureRound(updates).go()
  second = SecureRound(updates)
  for name, party in second.parties.items():
    party.summed = first.parties[name].summed
  second.go("train", train=[2])
  with pytest.raises(PartyError, match="round 3: expected the sites of its sum"):
    second.confirm()
  for a, b in itertools.product(first.masked.values(), second.masked.values()):
    seen = np.bincount(first.quantiser.pack(a - b), minlength=256)
    assert chisquare(seen).pvalue > 1e-6


def test_a_site_takes_part_in_no_round_that_is_smaller_than_its_own_minimum(plan):
  """The site's operator sets fed.min_replies; a smaller one of the server's changes nothing."""
  strict = dataclasses.replace(TERMS, rules=TERMS.rules._replace(fewest=4))
  run = plan("small", rounds=1, retries=0, min_replies=1, clients_per_round=3)
  app = SiteApp(LeastSquares(), run.params, masking=SecureSite(strict))
  grid = Recording(app, CLIENTS)
  with pytest.raises(RoundFailed, match=r"expected 4 to 16384 clients in the round .*; got 3"):
    run_rounds(grid, secured(run), CLIENTS)
  alone = plan("dropped", rounds=1, retries=0, deadline=0.5)
  grid = dropped(VICTIM)(SiteApp(LeastSquares(), run.params, masking=SecureSite(strict)), CLIENTS)
  with pytest.raises(RoundFailed, match="expected at least 4 of 4 clients in the sum"):
    run_rounds(grid, secured(alone), CLIENTS)
  assert all(r.has_error() for r in grid.replies if r.metadata.message_type == KINDS["confirm"])


# A site that sends more than it may.


class TwiceTheBound(LeastSquares):
  """Moves by twice the bound, in one direction, where the others move as ever."""

  def train(self, params, client, round):
    result = super().train(params, client, round)
    if client != VICTIM:
      return result
    moved = wire.sent_values(result.params, params, result.masks)
    far = wire.values_as_tree(moved * 2 * TERMS.clip / np.linalg.norm(moved), params, result.masks)
    return result._replace(
      params=wire.jax.tree.map(lambda a, b: (a + b).astype(a.dtype), params, far)
    )


def test_an_update_of_twice_the_bound_counts_as_one_of_the_bound(plan):
  run = plan("far", rounds=1)
  app = SiteApp(TwiceTheBound(), run.params, masking=SecureSite(TERMS))
  params = run_rounds(Recording(app, CLIENTS), secured(run), CLIENTS)
  weights, total = [10 + i for i in range(CLIENTS)], 0.0
  for client in range(CLIENTS):
    result = TwiceTheBound().train(run.params, client, 1)
    moved = wire.sent_values(result.params, run.params, result.masks)
    total = total + weights[client] * moved * min(1.0, TERMS.clip / np.linalg.norm(moved))
  found = wire.sent_values(params, run.params, result.masks)
  assert np.abs(found - total / sum(weights)).max() < 2 * STEP
  (line,) = [line for line in run.folder.metrics() if line["split"] == "train"]
  assert line["within_clip"] == 3 / 4
