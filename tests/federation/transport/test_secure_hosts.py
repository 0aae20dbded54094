"""Secure aggregation between processes over TLS, with a host killed between two rounds."""

import jax
import numpy as np
import pytest

from afspl_jax.config.experiment import Fed, Uplink
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.secure.roster import ROSTER, read_roster
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.server.aggregation import SecureAggregation
from afspl_jax.federation.server.rounds import Plan, run_rounds
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.federation.transport.server_executor import open_grid
from afspl_jax.federation.transport.site_keys import make_roster, make_site_key
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import (
  CLIENTS,
  LeastSquares,
  assert_same_bits,
  evaluate,
  init_params,
  reference,
)
from tests.federation.transport.hosts import start
from tests.federation.transport.secure_host import TERMS
from tests.federation.watching import Watching

SITES = [f"site_{i:02d}" for i in range(CLIENTS)]


def plan_in(folder, rounds=2):
  return Plan(
    params=init_params(),
    strategy=strategies.get_strategy("fedavg"),
    fed=Fed(rounds=rounds, clients_per_round=CLIENTS, deadline=600.0),
    seed=0,
    folder=folder,
    checkpoints=Checkpoints(folder.path / "checkpoints"),
    evaluate=evaluate,
    aggregation=SecureAggregation(TERMS, Uplink(select="dense"), 0),
  )


def in_process(path):
  """The same rounds without a network, and with keys that are made for the run."""
  app = SiteApp(LeastSquares(), init_params(), masking=SecureSite(TERMS))
  for rounds, sites in ((1, CLIENTS), (2, CLIENTS - 1)):
    with RunFolder.open(path, {}) as folder:
      params = run_rounds(LocalGrid(app, sites), plan_in(folder, rounds), sites)
  return params


@pytest.mark.slow
def test_the_sum_is_over_the_running_sites_and_a_killed_host_is_reported(base, superlink):
  for site in SITES:
    superlink.register(make_site_key(base / "keys", site).public)
  address = superlink.service.address
  hosts = [
    start("secure_host.py", address, base, *sites, out=base / f"host_{sites[0]}")
    for sites in (SITES[:3], SITES[3:])
  ]

  def on_round(report):
    if report.round == 1:
      hosts[1].kill()

  try:
    with RunFolder.open(base / "run", {}) as folder, open_grid(superlink) as grid:
      params = run_rounds(grid, plan_in(folder), CLIENTS, Watching(on_round))
      lines = folder.clients()
  finally:
    for host in hosts:
      host.kill()
      host.wait()
  status = {line["client"]: line["status"] for line in lines if line["round"] == 2}
  assert status.pop(SITES[3]).startswith(("dropped: no reply to keys within 60 s", "failed: "))
  assert status == dict.fromkeys(SITES[:3], "ok")
  make_roster(base / "keys", [base / "keys" / f"{site}.pub" for site in SITES])
  registered = read_roster(base / "keys" / ROSTER)
  for site in SITES:  # each has pinned the keys that the others are registered with
    others = {other: key for other, key in registered.items() if other != site}
    assert read_roster(base / site / ROSTER) == others
  plain = reference(2, lambda round: range(CLIENTS) if round == 1 else range(3))
  apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain, params)
  assert max(jax.tree.leaves(apart)) < 3 * TERMS.quantiser(15, CLIENTS, None).step
  assert_same_bits(params, in_process(base / "local"))
