"""A federation of least squares, in a folder of its own, and a ledger."""

import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.privacy.budget import LEDGER
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import CLIENTS, evaluate, init_params


@pytest.fixture
def plan(tmp_path):
  opened = []

  def make(name="run", **fed):
    folder = RunFolder.open(tmp_path / name, {})
    opened.append(folder)
    return Plan(
      params=init_params(),
      strategy=strategies.get_strategy("fedavg"),
      fed=Fed(**{"rounds": 4, "clients_per_round": CLIENTS, **fed}),
      seed=0,
      folder=folder,
      checkpoints=Checkpoints(folder.path / "checkpoints"),
      evaluate=evaluate,
    )

  yield make
  for folder in opened:
    folder.close()


@pytest.fixture
def ledger(tmp_path):
  return Ledger(tmp_path / LEDGER)
