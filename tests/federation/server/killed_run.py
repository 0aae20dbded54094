"""A run that is killed and started again, as a program of its own.

Every attempt is a forked child, so that the imports are paid for once; JAX starts in the child.
A child that is to die at a kind of moment sends itself SIGKILL there; in the middle of a write to
the run's files, after half of it. Prints one JSON line: how the attempts ended, and whether the
runs then ended as one that was never interrupted.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from afspl_jax.config.experiment import Fed, Uplink
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.pytrees import zeros_like
from afspl_jax.storage.run_folder import RunFolder
from tests.federation.least_squares import LeastSquares, init_params, predict
from tests.federation.watching import Watching

CLIENTS = 3
ROUNDS = 24


class Moments:
  """Counts moments by kind, and dies at the n-th of one kind."""

  def __init__(self, fatal=None, nth=1):
    self.fatal, self.left, self.kinds = fatal, nth, []

  def is_fatal(self, kind):
    if kind not in self.kinds:
      self.kinds.append(kind)
    self.left -= kind == self.fatal
    return self.fatal is not None and self.left == 0

  def pass_or_die(self, kind):
    if self.is_fatal(kind):
      die()


def die():
  os.kill(os.getpid(), signal.SIGKILL)


class Store(ClientStore):
  def __init__(self, folder, moments):
    super().__init__(folder)
    self.folder, self.moments = folder, moments

  def save(self, site, round, state):
    if self.moments.is_fatal("half of client state"):
      (self.folder / site).mkdir(parents=True, exist_ok=True)
      (self.folder / site / f"round_{round:06d}.safetensors.tmp").write_bytes(b"half")
      die()
    super().save(site, round, state)
    self.moments.pass_or_die("after client state")


class Trainer(LeastSquares):
  """Every site has a leaf of its own, sends half of its rows and keeps the rest for later."""

  def __init__(self, store, moments):
    super().__init__()
    self.store, self.moments = store, moments

  def train(self, params, client, round):
    self.moments.pass_or_die("train")
    site = self.site(client)
    new = {"own": {"bias": np.zeros(2, np.float32)}, "residual": zeros_like(params)}
    state = self.store.load(site, round, new) or new
    bias = params["mapper"]["bias"] + state["own"]["bias"]
    params = params | {"mapper": params["mapper"] | {"bias": bias}}
    result = super().train(params, client, round)
    config = Uplink(select="ratio", ratio=0.5, error_feedback="add")
    sent = uplink.compress(result.params, params, state["residual"], config)
    own = {"bias": np.asarray(result.params["mapper"]["bias"]) / 2}
    self.store.save(site, round, {"own": own, "residual": sent.residual})
    return result._replace(params=sent.params, masks=sent.masks)


class Folder(RunFolder):
  moments: Moments

  def _append(self, name, lines):
    lines = list(lines)
    if self.moments.is_fatal(f"half of {name}"):
      text = "".join(json.dumps(line) + "\n" for line in lines)
      with open(self.path / name, "a") as file:
        file.write(text[: len(text) // 2])
      die()
    super()._append(name, lines)
    self.moments.pass_or_die(f"after {name}")


class Saved(Checkpoints):
  moments: Moments

  def save(self, round, state):
    self.moments.pass_or_die("before checkpoint")
    super().save(round, state)
    self.moments.pass_or_die("after checkpoint")


class Momentum:
  """FedAvg with server momentum (Hsu et al. 2019): its state must survive, too."""

  def __init__(self):
    self.fedavg = strategies.get_strategy("fedavg")

  def client_penalty(self, params, global_params):
    return self.fedavg.client_penalty(params, global_params)

  def init(self, params):
    return {"velocity": jax.tree.map(np.zeros_like, params), "round": np.int32(0)}

  def aggregate(self, params, state, replies):
    mean, _ = self.fedavg.aggregate(params, {}, replies)
    step = lambda v, new, old: np.float32(0.5) * v + (new - old)  # noqa: E731
    velocity = jax.tree.map(step, state["velocity"], mean, params)
    new_params = jax.tree.map(lambda p, v: np.asarray(p + v), params, velocity)
    return new_params, {"velocity": velocity, "round": state["round"] + np.int32(1)}


@jax.jit
def mse(params, x, y):
  return ((predict(params, x) - y) ** 2).mean()


def evaluate(round, params):
  return None if round % 2 else {"loss": float(mse(params, *LeastSquares().data(1, 0)))}


def run(path, rounds, fatal=None, nth=1):
  moments = Moments(fatal, nth)
  folder = Folder.open(path, {"rounds": rounds})
  checkpoints = Saved(folder.path / "checkpoints")
  folder.moments = checkpoints.moments = moments
  plan = Plan(
    params=init_params(),
    strategy=Momentum(),
    fed=Fed(rounds=rounds, clients_per_round=2),
    seed=0,
    folder=folder,
    checkpoints=checkpoints,
    evaluate=evaluate,
  )
  watching = Watching(lambda report: moments.pass_or_die("on_round"))
  trainer = Trainer(Store(folder.path / "clients", moments), moments)
  params = run_local(plan, trainer, CLIENTS, progress=watching)
  result = [[k, v.tobytes().hex()] for k, v in sorted(flat(params).items())]
  (folder.path / "result.json").write_text(json.dumps(result))
  (folder.path / "kinds.json").write_text(json.dumps(moments.kinds))


def flat(params):
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def start(*args):
  """Runs in a forked child; returns its process id."""
  pid = os.fork()
  if pid == 0:
    status = 1
    try:
      run(*args)
      status = 0
    finally:
      os._exit(status)
  return pid


def outcome(pid):
  """How the child ended: "done", "killed" or "failed"."""
  status = os.waitpid(pid, 0)[1]
  if os.WIFSIGNALED(status):
    return "killed" if os.WTERMSIG(status) == signal.SIGKILL else "failed"
  return "failed" if os.WEXITSTATUS(status) else "done"


def ending(path):
  """All that must not depend on having been killed."""
  lines = []
  for name in ("metrics.jsonl", "clients.jsonl"):
    for line in (path / name).read_text().splitlines():
      lines.append({k: v for k, v in json.loads(line).items() if k != "seconds"})
  states = {
    str(file.relative_to(path)): file.read_bytes().hex()
    for file in sorted((path / "clients").rglob("*.safetensors"))
  }
  text = json.dumps([lines, states, (path / "result.json").read_text()])
  return hashlib.sha256(text.encode()).hexdigest()


def wait_for_round(path, round):
  deadline = time.monotonic() + 600
  while not path.exists() or f'"round": {round},' not in path.read_text():
    assert time.monotonic() < deadline, f"round {round} never came"
    time.sleep(0.01)


def main(base, seed):
  rng = random.Random(seed)
  assert outcome(start(base / "whole", ROUNDS)) == "done"
  whole = ending(base / "whole")

  # One run that dies once at every kind of moment.
  kinds = json.loads((base / "whole" / "kinds.json").read_text())
  deaths = [(kind, rng.choice((1, 2))) for kind in rng.sample(kinds, len(kinds))]
  died = {
    f"{kind} {nth}": outcome(start(base / "moments", ROUNDS, kind, nth)) for kind, nth in deaths
  }
  last = outcome(start(base / "moments", ROUNDS))
  moments = {"died": died, "last": last, "same": ending(base / "moments") == whole}

  # One run that is killed from outside, whatever it is doing by then.
  kills = 0
  for target in (3, 8, 13, 18):
    pid = start(base / "outside", ROUNDS)
    wait_for_round(base / "outside" / "metrics.jsonl", target)
    time.sleep(rng.uniform(0, 0.1))  # about the time of a round
    os.kill(pid, signal.SIGKILL)
    kills += outcome(pid) == "killed"
  last = outcome(start(base / "outside", ROUNDS))
  outside = {"kills": kills, "last": last, "same": ending(base / "outside") == whole}
  print(json.dumps({"moments": moments, "outside": outside}))


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]))
