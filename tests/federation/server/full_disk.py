"""A run on a disk that is full after its second round, then freed: a program of its own.

Prints one JSON line: what the first start said, and whether the second ended as a run on a disk
with room does. With "state" as the last argument, the clients keep states on that disk.
"""

import json
import sys
from pathlib import Path

from afspl_jax.config.experiment import Fed
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import CLIENTS, LeastSquares, init_params
from tests.federation.watching import Watching

WIDTH = 4000  # its checkpoint has a file of 80 kB
ROUNDS = 4


class Keeping(LeastSquares):
  """Keeps a state of 64 kB for each client."""

  def __init__(self, folder):
    super().__init__(WIDTH)
    self.store = ClientStore(folder)

  def train(self, params, client, round):
    update = super().train(params, client, round)
    self.store.save(self.site(client), round, update.params)
    return update


def run(path: Path, keeping: bool, on_round=lambda report: None):
  trainer = Keeping(path / "clients") if keeping else LeastSquares(WIDTH)
  with RunFolder.open(path, {}) as folder:
    checkpoints = Checkpoints(folder.path / "checkpoints")
    plan = Plan(
      params=init_params(WIDTH),
      strategy=strategies.get_strategy("fedavg"),
      fed=Fed(rounds=ROUNDS, clients_per_round=CLIENTS),
      seed=0,
      folder=folder,
      checkpoints=checkpoints,
      evaluate=lambda round, params: None,
    )
    try:
      params = run_local(plan, trainer, CLIENTS, progress=Watching(on_round))
    finally:
      checkpoints.close()
  return {name: leaf.tobytes().hex() for name, leaf in params["mapper"].items()}


def main(small: Path, large: Path, room: int, keeping: bool) -> None:
  ballast = small / "ballast"

  def fill(report):
    if report.round == 2:
      with open(ballast, "wb", buffering=0) as file:
        try:
          while True:
            file.write(b"x" * 4096)
        except OSError:
          file.truncate(file.tell() - room)

  said = ""
  try:
    run(small / "run", keeping, fill)
  except UserError as error:
    said = str(error)
  ballast.unlink()
  same = run(small / "run", keeping) == run(large / "run", keeping)
  print(json.dumps({"said": said, "same": same}))


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["state"])
