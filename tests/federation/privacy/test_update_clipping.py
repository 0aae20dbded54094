"""The client's half of privacy: what leaves it, with whose noise, and for how much."""

import jax
import numpy as np
import pytest
from scipy import stats

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import SiteError, Update
from afspl_jax.federation.privacy.accounting import Mechanism, epsilon
from afspl_jax.federation.privacy.budget import LEDGER
from afspl_jax.federation.privacy.clipping import norm
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.privacy.update_clipping import UpdateClipping
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.protocol.uplink import everywhere
from afspl_jax.federation.server.sites import Sites
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import CLIENTS, LeastSquares
from tests.federation.privacy.private_settings import (
  CHANCE,
  START,
  constant,
  settings_of,
  update_of,
)


@pytest.mark.parametrize("value", [1e-4, 5.0])
def test_a_client_sends_its_update_within_the_bound_and_neither_metrics_nor_numbers(value, ledger):
  config = settings_of(clip=0.7)
  clipping = UpdateClipping(config, ledger)
  params = jax.tree.map(np.add, START, constant(value))
  result = Update("a", params, everywhere(START), 123, {"loss": 1.5})
  left = clipping.apply(result, START, 0.7)
  assert (left.num_examples, left.metrics, left.masks) == (1, {}, result.masks)
  assert norm(update_of(left.params)) == pytest.approx(min(0.7, norm(constant(value))), rel=1e-3)


def test_a_client_does_not_take_another_bound_than_was_agreed_on(ledger):
  clipping = UpdateClipping(settings_of(clip=0.7), ledger)
  assert clipping.agreed_bound(0.7) == 0.7
  for given_ in (0.8, 0.0, float("nan"), None, "0.7", True):
    with pytest.raises(ValueError, match="clip: expected"):
      clipping.agreed_bound(given_)


def test_every_client_adds_noise_of_its_own_where_nobody_is_trusted(ledger):
  config = settings_of(dp="local", noise=3.0, clip=0.5)
  clipping, draws = UpdateClipping(config, ledger), []
  for _ in range(200):
    left = clipping.apply(Update("a", START, everywhere(START), 9, {}), START, 0.5)
    draws += [leaf.ravel() for leaf in jax.tree.leaves(update_of(left.params))]
  draws = np.concatenate(draws) / (3.0 * 0.5)
  assert CHANCE < stats.chi2(draws.size).cdf(np.sum(draws**2)) < 1 - CHANCE


def test_a_site_pays_out_of_its_own_budget_whatever_the_server_asks(tmp_path):
  budget = epsilon(Mechanism(1.5), 2, 1e-3) + 1e-6
  config, file = settings_of(dp="local", noise=3.0, epsilon=budget), tmp_path / LEDGER
  clipping, result = (
    UpdateClipping(config, Ledger(file)),
    Update("a", START, everywhere(START), 9, {}),
  )
  for _ in range(2):
    clipping.apply(result, START, 1.0)
  for again in (clipping, UpdateClipping(config, Ledger(file))):
    with pytest.raises(SiteError, match="is spent"):
      again.apply(result, START, 1.0)
  clipping.apply(result._replace(site="b"), START, 1.0)


def test_a_site_says_nothing_of_its_size(ledger):
  replies = []

  class Listening(LocalGrid):
    def pull_messages(self, ids):
      pulled = super().pull_messages(ids)
      replies.extend(pulled)
      return pulled

  app = SiteApp(LeastSquares(), START, None, UpdateClipping(settings_of(), ledger))
  grid = Listening(app, CLIENTS)
  assert {s.num_examples for s in Sites(grid, wire.terms(START, {}), 99).look().values()} == {1}
  assert len(replies) == CLIENTS
