"""P3: Flower's simulation on Ray, with PyTorch clients that run in any free actor.

Every actor loads both backbones once, and trains its clients as P1 does. The measured time of a
round includes Flower's messages and average.
"""

import functools
import os
import queue
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from jaxtyping import Int

from benchmarks.case import Case, Rows
from benchmarks.sides.side import Leaves, Trained
from benchmarks.sides.torch_plain import TorchPlain


class TorchRay:
  """A simulation that runs one round per call; see `Side`.

  Args:
    case: models and settings.
    folders: checkpoint folders of "clip" and "t5".
    params: the prompter's leaves.
    cores: CPU cores per actor; Ray starts as many actors as the machine has room for.
    nodes: number of simulated clients; the first ones train.
  """

  def __init__(
    self,
    case: Case,
    folders: Mapping[str, Path],
    params: Leaves,
    cores: int = 1,
    nodes: int = 100,
  ):
    self._params, self._cores, self._nodes = params, cores, nodes
    self._client = _client_app(case, dict(folders), cores)
    self._rounds: queue.Queue[Rows] = queue.Queue()
    self._done: queue.Queue[Trained | BaseException] = queue.Queue()
    self._begun = False
    self._average: Leaves = params

  def encode(self) -> None:
    """Does nothing: CLIP sees the pixels of every batch."""

  def train(self, rows: Rows) -> Trained:
    """Trains a round of all clients; the first round also starts Ray and loads the backbones."""
    if (clients := rows.image.shape[1]) > self._nodes:
      raise ValueError(f"rows: expected at most {self._nodes} clients; got {clients}")
    self._rounds.put(rows)
    if not self._begun:
      self._begun = True
      threading.Thread(target=self._simulate, daemon=True).start()
    done = self._done.get()
    if isinstance(done, BaseException):
      raise done
    return done

  def averaged(self) -> Leaves:
    """Returns the average of the last round."""
    return self._average

  def generate(self, rows: Rows, beams: int, tokens: int) -> Int[np.ndarray, "n t"]:
    """Not available in a simulation."""
    raise NotImplementedError("a simulation only trains")

  def _simulate(self) -> None:
    server = ServerApp()
    server.main()(self._serve)
    try:
      run_simulation(
        server,
        self._client,
        self._nodes,
        backend_config={
          "client_resources": {"num_cpus": self._cores, "num_gpus": 0.0},
          "init_args": {"num_cpus": len(os.sched_getaffinity(0)), "log_to_driver": False},
        },
      )
    except BaseException as error:  # noqa: BLE001 - `train` raises it
      self._done.put(error)

  def _serve(self, grid: Grid, context: Context) -> None:
    strategy = FedAvg()
    while len(list(grid.get_node_ids())) < self._nodes:
      time.sleep(0.1)
    with tempfile.TemporaryDirectory() as folder:
      for round in range(1, 1 << 30):
        rows = self._rounds.get()
        file = Path(folder) / f"{round}.npz"  # the clients' local data
        np.savez(file, **rows._asdict())
        self._done.put(self._round(grid, strategy, round, file, rows.image.shape[1]))

  def _round(self, grid: Grid, strategy: FedAvg, round: int, file: Path, clients: int) -> Trained:
    arrays, messages = _packed(self._params), []
    for client, node in enumerate(sorted(grid.get_node_ids())[:clients]):
      config = ConfigRecord({"rows": str(file), "client": client})
      content = RecordDict({"arrays": arrays, "config": config})
      messages.append(Message(content, node, "train", group_id=str(round)))
    replies = list(grid.send_and_receive(messages))
    for reply in replies:
      if reply.has_error():
        raise RuntimeError(reply.error.reason)
    average, _ = strategy.aggregate_train(round, replies)
    self._average = _unpacked(average)
    replies.sort(key=lambda reply: reply.content["metrics"]["client"])
    losses = np.array([reply.content["metrics"]["losses"] for reply in replies], np.float32)
    trained = [flatten_dict(_unpacked(reply.content["arrays"])) for reply in replies]
    stacked = {name: np.stack([leaves[name] for leaves in trained]) for name in trained[0]}
    return Trained(losses.T, unflatten_dict(stacked))


def _client_app(case: Case, folders: dict[str, Path], cores: int) -> ClientApp:
  app = ClientApp()

  @app.train()
  def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    client = config["client"]
    side = _loaded(case, tuple(folders.items()), cores)
    side.start_from(_unpacked(message.content["arrays"]))
    with np.load(config["rows"]) as file:
      rows = Rows(**{name: file[name][:, client : client + 1] for name in Rows._fields})
    trained = side.train(rows)
    metrics = MetricRecord(
      {
        "losses": trained.losses[:, 0].tolist(),
        "client": client,
        "num-examples": rows.image.size,
      }
    )
    own = unflatten_dict({name: leaf[0] for name, leaf in flatten_dict(trained.params).items()})
    content = RecordDict({"arrays": _packed(own), "metrics": metrics})
    return Message(content, reply_to=message)

  return app


@functools.lru_cache(maxsize=1)
def _loaded(case: Case, folders: tuple[tuple[str, Path], ...], cores: int) -> TorchPlain:
  """Loads the backbones, once per actor."""
  torch.set_num_threads(cores)
  return TorchPlain(case, dict(folders), {})


def _packed(leaves: Leaves) -> ArrayRecord:
  flat = flatten_dict(dict(leaves), sep="/")
  return ArrayRecord({name: Array(np.asarray(leaf)) for name, leaf in flat.items()})


def _unpacked(record: ArrayRecord) -> Leaves:
  return unflatten_dict({name: array.numpy() for name, array in record.items()}, sep="/")
