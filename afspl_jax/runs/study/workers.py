"""Worker processes that run experiments: several in parallel, each one experiment after another.

An unexpected error ends its worker, so that the next run starts in a new process.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from afspl_jax.config.experiment import Experiment
from afspl_jax.errors import UserError
from afspl_jax.federation.transport.parent_process import end_with_parent

# What a worker reports about its run, with a reason or "".
_PREPARED, _FINISHED, _REJECTED, _DEAD = "prepared", "finished", "rejected", "dead"


@dataclass(frozen=True)
class Task:
  """An experiment to run."""

  config: Experiment
  folder: Path  # the run's folder
  log: Path  # gets the run's terminal output


class TaskResult(NamedTuple):
  """How a task ended."""

  task: Task
  failure: str  # in one line; "": the run finished


class _Worker(NamedTuple):
  process: BaseProcess
  connection: Connection


def run_all(tasks: Iterable[Task], jobs: int, compiled: Path) -> Generator[TaskResult, None, None]:
  """Runs tasks in order, `jobs` at a time; closing the iterator kills the running ones.

  Args:
    tasks: the runs; one that was started before continues after its last finished round.
    jobs: number of worker processes. Each gets an equal share of this process's cores and of a
      GPU's memory.
    compiled: folder of JAX's compilation cache, unless JAX_COMPILATION_CACHE_DIR is set.

  Yields:
    Each task's result when it ends.
  """
  queue = deque(tasks)
  idle: dict[int, _Worker | None] = dict.fromkeys(range(jobs))
  busy: dict[Connection, tuple[int, _Worker, Task]] = {}
  # The first run makes the data and the image features; the others start afterwards and reuse them.
  prepared = False
  try:
    while queue or busy:
      while queue and idle and (prepared or not busy):
        share = min(idle)
        worker = idle.pop(share) or _start(share, jobs, compiled)
        task = queue.popleft()
        with contextlib.suppress(BrokenPipeError):  # it died meanwhile; detected below
          worker.connection.send(task)
        busy[worker.connection] = (share, worker, task)
      ready = wait(list(busy))
      for connection in [connection for connection in busy if connection in ready]:
        share, worker, task = busy[connection]
        try:
          event, reason = connection.recv()
        except (EOFError, ConnectionResetError):
          worker.process.join()
          event, reason = _DEAD, _death(worker.process.exitcode)
        if event == _PREPARED:
          prepared = True
          continue
        del busy[connection]
        if event == _DEAD:
          _end(worker)
        idle[share] = None if event == _DEAD else worker
        yield TaskResult(task, reason)
  finally:
    for worker in [entry[1] for entry in busy.values()] + [w for w in idle.values() if w]:
      worker.process.kill()  # a killed run can continue later
      _end(worker)


def _start(share: int, jobs: int, compiled: Path) -> _Worker:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(theirs, share, jobs, compiled), daemon=True)
  # This process handles Ctrl-C and ends its workers: they inherit the signal as blocked.
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    process.start()
  finally:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
  theirs.close()
  return _Worker(process, ours)


def _end(worker: _Worker) -> None:
  worker.process.join(10)  # time to write its traceback
  worker.process.kill()  # if a thread keeps it running
  worker.process.join()
  worker.connection.close()


def _death(exitcode: int | None) -> str:
  if exitcode is not None and exitcode < 0:
    hint = "; is there enough memory?" if exitcode == -signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-exitcode).name}{hint}"
  return f"its process ended with status {exitcode}"


def _work(tasks: Connection, share: int, jobs: int, compiled: Path) -> None:
  """Runs in a worker process until its parent kills it or ends."""
  end_with_parent()  # a restarted command needs the run's folder
  _limit(share, jobs)
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  while True:
    task = tasks.recv()
    with open(task.log, "a") as log:
      for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log.fileno(), stream.fileno())  # also the output of C++ code
    try:
      _run(task, tasks)
      tasks.send((_FINISHED, ""))
    except UserError as error:  # a user's mistake: this process can continue
      traceback.print_exc()
      tasks.send((_REJECTED, str(error).replace("\n", " ")))
    except BaseException as error:
      first_line = (str(error).splitlines() or [""])[0]
      tasks.send((_DEAD, f"{type(error).__name__}: {first_line}"))
      raise


def _run(task: Task, parent: Connection) -> None:
  # Slow to import, and the environment variables above must be set first.
  import functools

  import jax
  from tqdm import tqdm

  from afspl_jax.runs.run import run_experiment

  def say(text: str) -> None:
    print(text)
    parent.send((_PREPARED, ""))

  run_experiment(task.config, task.folder, functools.partial(tqdm, disable=True), say)
  jax.clear_caches()  # the next run needs other programs
  gc.collect()


def _limit(share: int, jobs: int) -> None:
  """Limits this worker to its share, before JAX counts cores and reserves memory."""
  if jobs == 1:
    return
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.3f}")
  if hasattr(os, "sched_setaffinity"):  # Linux
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[share % len(cores) :: jobs])
