"""Runs a side in its own process, with its own threads, memory and compiled programs.

While one side works, the others wait for their next call and use no CPU.
"""

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from afspl_jax.federation.transport.parent_process import end_with_parent


class Timed(NamedTuple):
  """The result of a call, and its cost."""

  value: Any
  seconds: float  # wall clock, measured in the child
  peak: int  # peak resident memory of the process so far, in bytes


class ChildError(RuntimeError):
  """A side raised an exception; the text is its traceback."""


class Child:
  """Calls `name(*args)` in a new process, and then methods of the object that it returned.

  Args:
    name: "module:callable".
    args: arguments of the callable; pickled.
    environment: environment variables, set before the first import.
  """

  def __init__(self, name: str, *args: Any, environment: Mapping[str, str] | None = None):
    context = multiprocessing.get_context("spawn")
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, name, args), daemon=True)
    ours = dict(os.environ)
    try:  # the child inherits them, as it imports modules before it runs its own code
      os.environ.update(environment or {})
      self._process.start()
    finally:
      os.environ.clear()
      os.environ.update(ours)
    theirs.close()
    self.built = self._receive(name)

  def __call__(self, method: str, *args: Any) -> Timed:
    """Calls a method.

    Raises:
      ChildError: the method raised, or the process ended.
    """
    self._connection.send((method, args))
    return self._receive(method)

  def close(self) -> None:
    """Ends the process."""
    self._connection.close()
    self._process.join(10)
    self._process.kill()

  def _receive(self, what: str) -> Timed:
    try:
      failure, out = self._connection.recv()
    except EOFError as error:
      self._process.join()
      raise ChildError(f"{what}: its process ended with {self._process.exitcode}") from error
    if failure:
      raise ChildError(f"{what}: {failure}")
    return out

  def __enter__(self) -> "Child":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def _serve(connection: Connection, name: str, args: Any) -> None:
  end_with_parent()
  target: Any = None

  def build() -> Any:
    nonlocal target
    module, _, attribute = name.partition(":")
    make = getattr(importlib.import_module(module), attribute)
    target = make(*args)
    return None if isinstance(make, type) else target  # an instance stays in this process

  _answer(connection, build)
  while target is not None:
    try:
      method, args = connection.recv()
    except EOFError:
      return
    _answer(connection, lambda: getattr(target, method)(*args))  # noqa: B023 - called at once


def _answer(connection: Connection, work: Any) -> None:
  start = time.perf_counter()
  try:
    value = work()
  except Exception:  # noqa: BLE001 - the parent raises it
    connection.send((traceback.format_exc(), None))
    return
  seconds = time.perf_counter() - start
  connection.send(("", Timed(value, seconds, _peak())))


def _peak() -> int:
  """Returns bytes. getrusage would include the parent's memory at the time of the start."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
