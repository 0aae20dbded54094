"""Processes that run experiments, several at a time and many one after another in each.

A fault takes its process with it: the next run starts in a fresh one, with nothing left of what
went wrong.
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

# What a worker says of its run, with a reason or "".
_PREPARED, _FINISHED, _REFUSED, _DEAD = "prepared", "finished", "refused", "dead"


@dataclass(frozen=True)
class Task:
  """A run that is to be done."""

  config: Experiment
  folder: Path  # the run's folder
  log: Path  # gets all that the run writes to its terminal


class Result(NamedTuple):
  """How a task ended."""

  task: Task
  failure: str  # in one line; "" = the run is finished


class _Worker(NamedTuple):
  process: BaseProcess
  connection: Connection


def run_all(tasks: Iterable[Task], jobs: int, compiled: Path) -> Generator[Result, None, None]:
  """Runs tasks in order, `jobs` at a time; closing the iterator ends what is under way.

  Args:
    tasks: runs; one that was begun before goes on after its last finished round.
    jobs: processes; each has its share of the cores this process may use, and of a GPU's memory.
    compiled: folder of JAX's compilation cache, where JAX_COMPILATION_CACHE_DIR names none.

  Yields:
    Results, as tasks end.
  """
  queue = deque(tasks)
  idle: dict[int, _Worker | None] = dict.fromkeys(range(jobs))
  busy: dict[Connection, tuple[int, _Worker, Task]] = {}
  # The first run draws data and encodes images; only then do others start, and find them there.
  prepared = False
  try:
    while queue or busy:
      while queue and idle and (prepared or not busy):
        share = min(idle)
        worker = idle.pop(share) or _start(share, jobs, compiled)
        task = queue.popleft()
        with contextlib.suppress(BrokenPipeError):  # died since: its end is seen below
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
        yield Result(task, reason)
  finally:
    for worker in [entry[1] for entry in busy.values()] + [w for w in idle.values() if w]:
      worker.process.kill()  # a run may be killed at any moment, and goes on from there
      _end(worker)


def _start(share: int, jobs: int, compiled: Path) -> _Worker:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_work, args=(theirs, share, jobs, compiled), daemon=True)
  # Ctrl-C is for this process, which then ends its workers: they inherit the signal as blocked.
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    process.start()
  finally:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
  theirs.close()
  return _Worker(process, ours)


def _end(worker: _Worker) -> None:
  worker.process.join(10)  # writes its traceback
  worker.process.kill()  # should some thread keep it
  worker.process.join()
  worker.connection.close()


def _death(exitcode: int | None) -> str:
  if exitcode is not None and exitcode < 0:
    hint = "; is there enough memory?" if exitcode == -signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-exitcode).name}{hint}"
  return f"its process ended with status {exitcode}"


def _work(tasks: Connection, share: int, jobs: int, compiled: Path) -> None:
  """What a worker does, until its parent ends it or is no more."""
  end_with_parent()  # a new start needs the run's folder
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
        os.dup2(log.fileno(), stream.fileno())  # also what C++ writes
    try:
      _run(task, tasks)
      tasks.send((_FINISHED, ""))
    except UserError as error:  # refused in good order: this process can go on
      traceback.print_exc()
      tasks.send((_REFUSED, str(error).replace("\n", " ")))
    except BaseException as error:
      first_line = (str(error).splitlines() or [""])[0]
      tasks.send((_DEAD, f"{type(error).__name__}: {first_line}"))
      raise


def _run(task: Task, parent: Connection) -> None:
  # Seconds to import, and the settings above must come first.
  import functools

  import jax
  from tqdm import tqdm

  from afspl_jax.runs.run import federate

  def say(text: str) -> None:
    print(text)
    parent.send((_PREPARED, ""))

  federate(task.config, task.folder, functools.partial(tqdm, disable=True), say)
  jax.clear_caches()  # the next run's programs are others: these would only fill the memory
  gc.collect()


def _limit(share: int, jobs: int) -> None:
  """Takes this worker's share of the machine, before JAX counts cores and reserves memory."""
  if jobs == 1:
    return
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.3f}")
  if hasattr(os, "sched_setaffinity"):  # Linux
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[share % len(cores) :: jobs])
