"""A federation of least squares, in a folder of its own, and a ledger."""

import pytest
from least_squares import CLIENTS, evaluate, init_params

from afspl_jax.checkpoint import Checkpoints
from afspl_jax.config import Fed
from afspl_jax.federation import strategies
from afspl_jax.federation.private import LEDGER
from afspl_jax.federation.rounds import Plan
from afspl_jax.privacy.ledger import Ledger
from afspl_jax.run_folder import RunFolder


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


@pytest.fixture
def ledger(tmp_path):
  return Ledger(tmp_path / LEDGER)
