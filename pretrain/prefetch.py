"""Makes batches on a second thread while the device computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], number: int, ahead: int = 4) -> Iterator[T]:
  """Yields make(0), ..., make(number - 1) in order, up to `ahead` made in advance."""
  with ThreadPoolExecutor(1) as pool:
    pending = [pool.submit(make, i) for i in range(min(ahead, number))]
    for i in range(number):
      if i + ahead < number:
        pending.append(pool.submit(make, i + ahead))
      yield pending.pop(0).result()
