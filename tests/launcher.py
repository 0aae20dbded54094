"""Starts launch.py as a user does: a process of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from afspl_jax.runs.commands.run import launch
from tests.quick_compile import QUICK_COMPILE

ROOT = Path(__file__).parents[1]
ROUNDS = 3
PATIENCE = 1200.0  # seconds: a busy machine is slow, and only a program that hangs is wrong


class Launcher:
  """Starts launch.py with small checkpoints and data, and caches of its own.

  Args:
    base: a folder for all that it writes.
    checkpoints: folders of CLIP and T5.
    shapes_dir: the data.
    optimised: compile the program that users run, not one that is compiled in a sixth of the time.
  """

  def __init__(self, base: Path, checkpoints, shapes_dir: Path, optimised: bool = False):
    self.base = base
    self.env = {
      **os.environ,
      "XLA_FLAGS": "" if optimised else QUICK_COMPILE,  # the one device that a laptop has
      "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if optimised else "1",
      "XDG_CACHE_HOME": str(base / "cache"),
      "HF_HOME": str(base / "no_hugging_face"),
      "TFDS_DATA_DIR": str(base / "no_data_sets"),
      "COLUMNS": "200",
    }
    fields = {
      "backbone.clip": checkpoints.clip,
      "backbone.t5": checkpoints.t5,
      "data.dir": shapes_dir,
      "data.partition": "task",  # captions at some clients, questions at the others
      "data.num_clients": 6,
      "data.target_length": 12,
      "prompter.tokens": 4,
      "prompter.pool": 3,
      "prompter.k_max": 2,
      "optim.batch_size": 4,
      "optim.local_steps": 2,
      "uplink.select": "ratio",
      "uplink.ratio": 0.5,
      "fed.rounds": ROUNDS,
      "fed.clients_per_round": 3,
      "fed.compare": "none",
      "eval.every": 2,
      "eval.val_examples": 8,
      "eval.test_examples": 8,
      "eval.batch_size": 8,
      "eval.max_tokens": 6,
    }
    self.small = [f"--config.{name}={value}" for name, value in fields.items()]

  def start(self, *args: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(
      command, cwd=self.base, env=self.env, stdout=pipe, stderr=pipe, text=True
    )

  def run(self, *args: str) -> subprocess.CompletedProcess:
    """Runs to the end."""
    return self.ended(self.start(*args))

  def run_here(self, *args: str) -> subprocess.CompletedProcess:
    """Runs its main function in this process, for a start that ends before anything is trained."""
    out, err, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with (
      pytest.MonkeyPatch.context() as patch,
      contextlib.chdir(self.base),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      for name in ("XDG_CACHE_HOME", "HF_HOME", "TFDS_DATA_DIR", "COLUMNS"):
        patch.setenv(name, self.env[name])
      try:
        status = launch("launch.py", [sys.executable, str(ROOT / "launch.py")], args)
      finally:
        signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(args, status, out.getvalue(), err.getvalue())

  def ended(self, process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)

  def interrupted(
    self, when: Callable[[], object], how: signal.Signals, *args: str
  ) -> subprocess.CompletedProcess:
    """Sends a signal as soon as something is true."""
    process = self.start(*args)
    while process.poll() is None:
      if when():
        process.send_signal(how)
        break
      time.sleep(0.002)
    return self.ended(process)
