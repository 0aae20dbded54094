"""Keys and query from the sites' images: the discriminant analysis, and the run that uses it."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import SiteError
from afspl_jax.federation.protocol.image_statistics import ImageStatistics, image_statistics
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.server.routing import site_routing, with_routing
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import CLIENTS, LeastSquares, assert_same_bits
from tests.federation.routed_sites import WIDTH, RoutedSites, images, routed_params, statistics
from tests.federation.watching import Watching

SITES = {f"site_{client:02d}": statistics(client) for client in range(CLIENTS)}
MANY = 10**8  # images, so that nothing is due to chance
SURE = {name: site._replace(num_examples=MANY) for name, site in SITES.items()}


def units(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def symmetric(triangle):
  full = np.zeros((WIDTH, WIDTH))
  full[np.triu_indices(WIDTH)] = triangle
  return full + np.triu(full, 1).T


def log_probabilities(params, features):
  """Of each site, as the prompter computes them from what is in the leaves; up to a constant."""
  sites = params["sites"]
  query = units(features) @ sites["query"]["kernel"] + sites["query"]["bias"]
  return -np.square(query[:, None] - sites["keys"]).sum(axis=-1) / 2


def probabilities(params, features):
  return scipy.special.softmax(log_probabilities(params, features), axis=1)


def population(clients, number, seed=0):
  """Sites that draw their images from one population."""
  rng = np.random.default_rng(seed)
  spread = np.linspace(0.02, 0.3, WIDTH)
  draw = lambda: (1 + spread * rng.normal(size=(number, WIDTH))).astype(np.float32)  # noqa: E731
  return {f"site_{k:02d}": image_statistics(draw()) for k in range(clients)}


def test_statistics_are_mean_and_covariance_of_unit_vectors():
  mine, x = statistics(1), units(images(1, 41))
  assert mine.num_examples == 41 and mine.mean.dtype == mine.covariance.dtype == np.float32
  np.testing.assert_allclose(mine.mean, x.mean(axis=0), atol=1e-6)
  full = np.cov(x.T, bias=True)
  np.testing.assert_allclose(mine.covariance, full[np.triu_indices(WIDTH)], atol=1e-6)


def test_of_too_few_images_nothing_is_sent():
  with pytest.raises(SiteError, match="expected at least 8 images; got 7"):
    image_statistics(images(0, 7))


def test_distances_are_the_linear_discriminants():
  """log p(site) = x' S^-1 m - m' S^-1 m / 2, up to a constant of the image."""
  params = with_routing(routed_params(), site_routing(SURE, 5, seed=0))
  within = np.mean([symmetric(site.covariance) for site in SURE.values()], axis=0)
  means = np.array([site.mean for site in SURE.values()], np.float64)
  x = units(images(2).astype(np.float64))
  towards = np.linalg.solve(within, means.T)
  expected = x @ towards - np.einsum("kf,fk->k", means, towards) / 2
  found = log_probabilities(params, x)[:, :CLIENTS]
  centred = [each - each.mean(axis=1, keepdims=True) for each in (found, expected)]
  np.testing.assert_allclose(*centred, rtol=1e-3, atol=1e-3 * np.abs(centred[1]).max())


@pytest.mark.parametrize("number", [8, 40, 1000])
def test_a_covariance_of_few_images_is_shrunk_as_chen_et_al_say(number):
  """Two sites: their keys lie 2 sqrt(d) / 2 apart, where d is the distance after whitening."""
  sites = {name: SITES[name]._replace(num_examples=number) for name in ("site_00", "site_01")}
  n = 2 * number - 2
  within = sum(symmetric(site.covariance) for site in sites.values()) * number / n
  squares, square = np.trace(within @ within), np.trace(within) ** 2
  rho = ((1 - 2 / WIDTH) * squares + square) / ((n + 1 - 2 / WIDTH) * (squares - square / WIDTH))
  rho = min(1, rho)
  shrunk = (1 - rho) * within + rho * np.trace(within) / WIDTH * np.eye(WIDTH)
  away = np.subtract(*(site.mean.astype(np.float64) for site in sites.values()))
  y = np.sqrt(away @ np.linalg.solve(shrunk, away)) / 2 * np.sqrt(2 * number / WIDTH)
  beta = 2 / WIDTH
  signal = np.sqrt((y**2 - beta - 1) ** 2 - 4 * beta) / y  # Gavish and Donoho 2017, eq. 7
  found = site_routing(sites, 5, seed=0)
  assert found.keys.shape == (2, 1)
  apart = abs(np.subtract(*found.keys[:, 0]))
  assert apart == pytest.approx(2 * signal / np.sqrt(2 * number / WIDTH), rel=1e-4)


def test_images_find_the_prompt_of_their_site():
  params = with_routing(routed_params(), site_routing(SITES, 5, seed=0))
  for client in range(CLIENTS):
    found = probabilities(params, images(client, 300)[200:])  # not among those that were counted
    assert (found.argmax(axis=1) == client).all() and found[:, client].mean() > 0.99
    assert not found[:, CLIENTS:].any()  # prompts of no site
  for leaf in jax.tree.leaves(params):
    assert leaf.dtype == np.float32 and not np.signbit(leaf[leaf == 0]).any()


@pytest.mark.parametrize("number", [8, 40, 400])
def test_sites_that_differ_by_chance_alone_have_no_keys(number):
  params = routed_params(10)
  for seed in range(5):
    found = with_routing(params, site_routing(population(10, number, seed), 10, seed=0))
    assert_same_bits(found, params)


def test_turned_features_are_routed_alike():
  turn = scipy.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
  turned = {name: image_statistics(images(k, 40 + k) @ turn) for k, name in enumerate(SITES)}
  x = units(images(2).astype(np.float64))
  one, other = (
    log_probabilities(with_routing(routed_params(), site_routing(sites, 5, seed=0)), y)
    for sites, y in ((SITES, x), (turned, x @ turn))
  )
  np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(one[:, :CLIENTS]).max())


def test_the_order_in_which_sites_answer_does_not_matter():
  backwards = dict(reversed(SITES.items()))
  assert_same_bits(site_routing(SITES, 3, seed=0), site_routing(backwards, 3, seed=0))


def test_sites_beyond_the_prompts_share_the_keys_of_clusters():
  near = lambda client: (images(client % 3, 30) + 0.01 * client).astype(np.float32)  # noqa: E731
  many = {f"site_{k:02d}": image_statistics(near(k)) for k in range(9)}
  params = with_routing(routed_params(3), site_routing(many, 3, seed=0))
  chosen = [set(probabilities(params, near(k)).argmax(axis=1).tolist()) for k in range(9)]
  assert all(len(keys) == 1 for keys in chosen)
  assert chosen[:3] == chosen[3:6] == chosen[6:] and set.union(*chosen[:3]) == {0, 1, 2}


def test_more_sites_than_prompts_have_no_more_directions_than_keys_have_room():
  rng = np.random.default_rng(0)
  draw = lambda: 3 * rng.normal(size=WIDTH) + 0.1 * rng.normal(size=(30, WIDTH))  # noqa: E731
  many = {f"site_{k}": image_statistics(draw().astype(np.float32)) for k in range(9)}
  found = with_routing(routed_params(3), site_routing(many, 3, seed=0))
  assert found["sites"]["keys"].shape == (3, 3) and np.isfinite(found["sites"]["keys"]).all()


@pytest.mark.parametrize("number", [1, 3, 7])
def test_sites_that_do_not_differ_have_no_keys(number):
  alike = {f"site_{k}": SURE["site_00"] for k in range(number)}
  assert site_routing(alike, 5, seed=0).keys.shape == (number if number <= 5 else 5, 0)


def test_images_that_do_not_differ_are_routed_too():
  """Without any variance within sites."""
  flat = np.zeros(WIDTH * (WIDTH + 1) // 2, np.float32)
  means = np.eye(WIDTH, dtype=np.float32)[:2]
  sites = {f"site_{k}": ImageStatistics(9, mean, flat) for k, mean in enumerate(means)}
  params = with_routing(routed_params(), site_routing(sites, 5, seed=0))
  np.testing.assert_array_equal(probabilities(params, np.eye(WIDTH)[:2])[:, :2], np.eye(2))


@pytest.fixture
def routed(plan):
  def make(name="run", **fed):
    return dataclasses.replace(plan(name, **fed), params=routed_params())

  return make


def with_sites(run, progress=None, statistics=statistics):
  more = {"progress": progress} if progress else {}
  return run_local(run, RoutedSites(), CLIENTS, statistics=statistics, **more)


def test_a_run_sets_keys_and_query_once_and_trains_the_rest(routed):
  run = routed()
  trained = with_sites(run)
  expected = with_routing(run.params, site_routing(SITES, 5, run.seed))
  assert_same_bits(trained["sites"], expected["sites"])
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
  expected = with_routing(run.params, site_routing(others, 5, run.seed))
  assert_same_bits(trained["sites"], expected["sites"])
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
  with pytest.raises(RoundFailed, match=r"sites/keys: expected no rows, .* got 5"):
    run_rounds(LocalGrid(app, CLIENTS), run, CLIENTS)


def test_rows_that_nobody_trains_are_not_averaged_over_the_cohort(routed):
  run = dataclasses.replace(routed(), weighing="cohort")
  expected = with_routing(run.params, site_routing(SITES, 5, run.seed))
  assert_same_bits(with_sites(run)["sites"], expected["sites"])
