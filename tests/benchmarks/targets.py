"""Functions and classes that the processes of test_process.py run."""

import os


class Counter:
  def __init__(self, start: int):
    self.number = start

  def add(self, n: int) -> int:
    self.number += n
    return self.number

  def environment(self, name: str) -> str | None:
    return os.environ.get(name)

  def grow(self, size: int) -> int:
    return len(bytearray(size))

  def fail(self) -> None:
    raise ValueError("no such thing")

  def die(self) -> None:
    os._exit(7)


def double(n: int) -> int:
  return 2 * n
