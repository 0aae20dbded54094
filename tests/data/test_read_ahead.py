import threading
import time

import pytest

from afspl_jax.data.read_ahead import map_ahead


def test_images_come_in_order_from_several_threads():

  def make(i):
    time.sleep(0.001 * (i % 3))
    return i, threading.get_ident()

  taken = []
  items = (taken.append(i) or i for i in range(60))
  found = []
  for i, thread in map_ahead(make, items, 8, threads=4):
    assert len(taken) <= i + 9  # no more wait than may
    found.append((i, thread))
  assert [i for i, _ in found] == list(range(60))
  assert len({thread for _, thread in found}) > 1


def test_the_number_of_threads_is_as_given():
  together = threading.Barrier(5, timeout=600)  # passed by five at once
  assert sorted(map_ahead(lambda _: together.wait(), range(5), 5, threads=5)) == list(range(5))
  alone = map_ahead(lambda _: threading.get_ident(), range(20), 8, threads=1)
  assert len(set(alone)) == 1


def test_the_error_of_an_item_comes_in_its_place():
  found = []
  with pytest.raises(ZeroDivisionError):
    for value in map_ahead(lambda i: 1 / (i - 5), range(10), 4):
      found.append(value)
  assert len(found) == 5


def test_no_item_is_computed_after_the_iterator_is_closed():
  made = []
  values = map_ahead(lambda i: made.append(i) or i, range(1000), 4)
  assert next(values) == 0
  values.close()
  assert len(made) <= 5
