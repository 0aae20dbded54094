"""Keys and query from the sites' images: the discriminant analysis, and the run that uses it."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.linalg

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import SiteError
from afspl_jax.federation.protocol.image_statistics import ImageStatistics, image_statistics
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.server.routing import site_routing, with_routing
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import CLIENTS, LeastSquares, assert_same_bits
from tests.federation.routed_sites import (
  KEY_WIDTH,
  WIDTH,
  RoutedSites,
  images,
  routed_params,
  statistics,
)
from tests.federation.watching import Watching

SITES = {f"site_{client:02d}": statistics(client) for client in range(CLIENTS)}


def units(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def moments(clients=range(CLIENTS), sizes=lambda client: 40 + client):
  """From the images themselves: shares, means, pooled covariance within and between sites."""
  per_site = [units(images(client, sizes(client)).astype(np.float64)) for client in clients]
  share = np.array([len(x) for x in per_site]) / sum(map(len, per_site))
  means = np.array([x.mean(axis=0) for x in per_site])
  within = sum(w * np.cov(x.T, bias=True) for w, x in zip(share, per_site, strict=True))
  away = means - share @ means
  return share, means, within + 1e-5 * np.eye(WIDTH), (share[:, None] * away).T @ away


def cosines(params, features):
  """The pool's similarities; half of its input is the instruction."""
  pool = params["pool"]
  both = np.concatenate([units(features), np.ones_like(features)], axis=1)
  query = both @ pool["query"]["kernel"] + pool["query"]["bias"]
  size = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(pool["keys"], axis=1)
  return query @ pool["keys"].T / np.maximum(size, 1e-12)


def test_statistics_are_mean_and_covariance_of_unit_vectors():
  mine, x = statistics(1), units(images(1, 41))
  assert mine.num_examples == 41 and mine.mean.dtype == mine.covariance.dtype == np.float32
  np.testing.assert_allclose(mine.mean, x.mean(axis=0), atol=1e-6)
  full = np.cov(x.T, bias=True)
  np.testing.assert_allclose(mine.covariance, full[np.triu_indices(WIDTH)], atol=1e-6)


def test_of_too_few_images_nothing_is_sent():
  with pytest.raises(SiteError, match="expected at least 8 examples; got 7"):
    image_statistics(images(0, 7))


def test_query_and_keys_have_the_products_of_the_closed_form():
  found = site_routing(SITES, 5, KEY_WIDTH, seed=0)
  share, means, within, _ = moments()
  x = units(images(9).astype(np.float64))
  expected = (x - share @ means) @ np.linalg.inv(within) @ (means - share @ means).T
  products = (x @ found.kernel + found.bias) @ found.keys.T
  np.testing.assert_allclose(products, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_with_narrow_keys_the_directions_are_fishers():
  found = site_routing(SITES, 5, 2, seed=0)
  _, _, within, between = moments()
  _, vectors = scipy.linalg.eigh(between, within)
  ours, _ = np.linalg.qr(found.kernel)
  theirs, _ = np.linalg.qr(vectors[:, -2:])
  assert np.linalg.svd(ours.T @ theirs)[1].min() > 1 - 1e-4


def test_images_find_the_key_of_their_site_whatever_is_asked():
  params = with_routing(routed_params(), site_routing(SITES, 5, KEY_WIDTH, seed=0))
  for client in range(CLIENTS):
    found = cosines(params, images(client, 300)[200:])  # not among those that were counted
    assert (found.argmax(axis=1) == client).all() and found[:, client].min() > 0.8
    np.testing.assert_allclose(found[:, CLIENTS], 0, atol=1e-6)  # the key of no site
  for leaf in jax.tree.leaves(params):
    assert leaf.dtype == np.float32 and not np.signbit(leaf[leaf == 0]).any()


def test_turned_features_are_routed_alike():
  turn = scipy.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
  turned = {name: image_statistics(images(k, 40 + k) @ turn) for k, name in enumerate(SITES)}
  one, other = (site_routing(sites, 5, KEY_WIDTH, seed=0) for sites in (SITES, turned))
  x = units(images(2).astype(np.float64))
  products = [
    (y @ each.kernel + each.bias) @ each.keys.T for each, y in ((one, x), (other, x @ turn))
  ]
  np.testing.assert_allclose(*products, rtol=1e-3, atol=1e-3 * np.abs(products[0]).max())


def test_the_order_in_which_sites_answer_does_not_matter():
  backwards = dict(reversed(SITES.items()))
  assert_same_bits(site_routing(SITES, 3, 4, seed=0), site_routing(backwards, 3, 4, seed=0))


def test_sites_beyond_the_pool_share_the_keys_of_clusters():
  near = lambda client: (images(client % 3, 30) + 0.01 * client).astype(np.float32)  # noqa: E731
  many = {f"site_{k:02d}": image_statistics(near(k)) for k in range(9)}
  params = with_routing(routed_params(3), site_routing(many, 3, KEY_WIDTH, seed=0))
  chosen = [set(cosines(params, near(k)).argmax(axis=1).tolist()) for k in range(9)]
  assert all(len(keys) == 1 for keys in chosen)
  assert chosen[:3] == chosen[3:6] == chosen[6:] and set.union(*chosen[:3]) == {0, 1, 2}


def test_a_cluster_is_where_its_images_are():
  """Two sites with one mean are one site with both of their images."""
  twice = SITES | {"site_04": SITES["site_00"]}
  merged = SITES | {"site_00": SITES["site_00"]._replace(num_examples=80)}
  x = units(images(2).astype(np.float64))
  one, other = (
    (x @ each.kernel + each.bias) @ each.keys.T
    for each in (site_routing(sites, 4, KEY_WIDTH, seed=0) for sites in (twice, merged))
  )
  np.testing.assert_allclose(np.sort(one), np.sort(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", [1, 3, 7])
def test_sites_that_do_not_differ_give_every_prompt_the_same(number):
  alike = {f"site_{k}": SITES["site_00"] for k in range(number)}
  params = with_routing(routed_params(), site_routing(alike, 5, KEY_WIDTH, seed=0))
  np.testing.assert_array_equal(cosines(params, images(0)), 0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_images_that_do_not_differ_are_routed_too():
  """Without any variance within sites."""
  flat = np.zeros(WIDTH * (WIDTH + 1) // 2, np.float32)
  means = np.eye(WIDTH, dtype=np.float32)[:2]
  sites = {f"site_{k}": ImageStatistics(9, mean, flat) for k, mean in enumerate(means)}
  params = with_routing(routed_params(), site_routing(sites, 5, KEY_WIDTH, seed=0))
  found = cosines(params, np.eye(WIDTH)[:2])[:, :2]
  np.testing.assert_allclose(found, [[1, -1], [-1, 1]], atol=1e-5)


@pytest.fixture
def routed(plan):
  def make(name="run", **fed):
    return dataclasses.replace(plan(name, **fed), params=routed_params(), routing="sites")

  return make


def with_sites(run, progress=None, statistics=statistics):
  more = {"progress": progress} if progress else {}
  return run_local(run, RoutedSites(), CLIENTS, statistics=statistics, **more)


def test_a_run_sets_keys_and_query_once_and_trains_the_rest(routed):
  run = routed()
  trained = with_sites(run)
  expected = with_routing(run.params, site_routing(SITES, 5, KEY_WIDTH, run.seed))
  assert_same_bits(trained["pool"], expected["pool"])
  assert not np.array_equal(trained["prompt"]["global"], run.params["prompt"]["global"])
  first, *_ = run.folder.metrics()
  assert first["round"] == 0 and first["clients"] == CLIENTS
  assert first["bytes_up"] > CLIENTS * 4 * (WIDTH + WIDTH * (WIDTH + 1) // 2)


@pytest.mark.parametrize("kept", ["no checkpoint", "checkpoint 0"])
def test_a_run_that_dies_around_the_routing_ends_with_the_same_bits(routed, kept):
  whole = with_sites(routed("whole"))
  run = routed()

  class Dead(Exception):
    pass

  def die(*_):
    raise Dead

  if kept == "no checkpoint":
    with pytest.raises(Dead):
      with_sites(dataclasses.replace(run, evaluate=die))
  else:
    with pytest.raises(Dead):
      with_sites(run, Watching(die))
  again = with_sites(run, statistics=statistics if kept == "no checkpoint" else None)
  assert_same_bits(again, whole)
  lines = [line for line in run.folder.metrics() if line["round"] == 0]
  assert len(lines) == 1


def test_a_site_that_fails_is_left_out_and_takes_part_in_rounds(routed):
  def failing(client):
    if client == 2:
      raise SiteError("too few")
    return statistics(client)

  run, watching = routed(), Watching()
  trained = with_sites(run, watching, failing)
  others = {name: each for name, each in SITES.items() if name != "site_02"}
  expected = with_routing(run.params, site_routing(others, 5, KEY_WIDTH, run.seed))
  assert_same_bits(trained["pool"], expected["pool"])
  said = [text for text in watching.sites if "routing" in text]
  assert said == ["site_02: left out of the routing: failed: SiteError: too few"]
  assert {line["status"] for line in run.folder.clients()} == {"ok"}


def test_without_any_statistics_there_is_no_run(routed):
  run = routed()
  with pytest.raises(RoundFailed, match=r"statistics of at least 1 sites; got 0. .*start") as why:
    with_sites(run, statistics=None)  # sites with another setting send none, whoever asks
  assert "\n" not in str(why.value) and not run.folder.metrics()


def test_a_row_of_keys_or_query_is_rejected(routed):
  run = routed(retries=0)
  app = SiteApp(LeastSquares(), run.params, statistics=statistics)
  with pytest.raises(RoundFailed, match=r"pool/keys: expected no rows, .* got 5"):
    run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)


def test_rows_that_nobody_trains_are_not_averaged_over_the_cohort(routed):
  run = dataclasses.replace(routed(), weighing="cohort")
  expected = with_routing(run.params, site_routing(SITES, 5, KEY_WIDTH, run.seed))
  assert_same_bits(with_sites(run)["pool"], expected["pool"])
