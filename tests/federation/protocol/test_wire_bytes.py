"""How many bytes a message takes: as many as Flower's own objects have."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from afspl_jax.federation.protocol import wire


def test_bytes_are_those_of_flowers_own_objects():
  TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
  content = RecordDict(
    {
      "arrays": wire.pack({"a": np.ones((2, 3), np.float32), "b": np.float32(2)}),
      "metrics": MetricRecord({"loss": 1.0}),
      "config": ConfigRecord({"round": 3}),
    }
  )
  message = Message(content, 2, "train", group_id="3")
  flowers = {k: obj.deflate() for k, obj in get_all_nested_objects(message).items()}
  assert wire.serialized(message) == flowers
  assert wire.record_bytes(message) == sum(len(data) for data in flowers.values())


def test_bytes_grow_by_four_a_float():
  small, large = ({"a": np.random.default_rng(0).random(n, np.float32)} for n in (1000, 3000))
  grown = wire.record_bytes(wire.pack(large)) - wire.record_bytes(wire.pack(small))
  assert abs(grown - 4 * 2000) <= 4  # digits of the length in headers


def test_bytes_of_a_sparse_update_are_its_values_and_a_bit_a_row():
  tree = {"a": np.random.default_rng(0).random((64, 100), np.float32)}
  masks = {"a": np.arange(64)[:, None] < 16}
  sizes = {k: v.data for k, v in wire.pack(tree, masks).items()}
  assert len(sizes["flat"]) == 128 + 16 * 100 * 4 and len(sizes["rows"]) == 128 + 64 / 8
  sparse, dense = wire.record_bytes(wire.pack(tree, masks)), wire.record_bytes(wire.pack(tree))
  assert 0.25 < sparse / dense < 0.29  # a quarter, the header of one more array
  alone = wire.record_bytes(ArrayRecord({"flat": wire.pack(tree, masks)["flat"]}))
  assert sparse - alone > len(sizes["rows"])
