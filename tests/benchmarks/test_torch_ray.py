"""Flower's simulation trains the same as P1. Needs the extra `ray`."""

import jax
import numpy as np
import pytest

from benchmarks.case import Case, rows, write_backbones
from benchmarks.process import Child, ChildError
from benchmarks.sides.afspl import untrained
from benchmarks.sides.torch_plain import TorchPlain

pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  case = Case("toy", "toy")
  folders = write_backbones(case, tmp_path_factory.mktemp("backbones"))
  return case, folders, untrained(case, folders)


def test_rounds_equal_those_of_clients_trained_one_after_another(world):
  with Child("benchmarks.sides.torch_ray:TorchRay", *world, 1, 5) as side:
    for clients in (4, 5):
      given = rows(world[0], 3, clients, 8)
      expected = TorchPlain(*world).train(given)
      trained = side("train", given).value
      np.testing.assert_allclose(trained.losses, expected.losses, rtol=1e-5)
      close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
      jax.tree.map(close, trained.params, expected.params)
      mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), expected.params)
      jax.tree.map(close, side("averaged").value, mean)
    with pytest.raises(ChildError, match="expected at most"):
      side("train", rows(world[0], 3, 6, 8))
