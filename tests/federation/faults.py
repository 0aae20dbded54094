"""Honest replies, spoilt in every way that a site may spoil them; each is still a real message."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.config.experiment import Fed
from afspl_jax.federation.client.client_app import SiteApp
from tests.federation.least_squares import LeastSquares, init_params


class Faulty(ClientApp):
  """Honest but for some clients in some rounds."""

  def __init__(self, spoil, clients=(2,), rounds=range(99)):
    super().__init__()
    self.honest = SiteApp(LeastSquares(), init_params())
    self.spoil, self.clients, self.rounds = spoil, clients, rounds

  def __call__(self, message, context):
    reply = self.honest(message, context)
    client = context.node_config["partition-id"]
    if message.metadata.message_type != "train" or client not in self.clients:
      return reply
    if message.content["config"]["round"] not in self.rounds:
      return reply
    return self.spoil(reply) or reply


def raising(reply):
  raise OSError("disk full")


def erring(reply):
  reply.content = None
  reply.error = Error(8)


def no_content(reply):
  reply.content = RecordDict()


def flat(change):
  def spoil(reply):
    change(reply.content["arrays"])

  return spoil


def one_number(value):
  def change(arrays):
    values = arrays["flat"].numpy().copy()
    values[3] = value
    arrays["flat"] = Array(values)

  return change


def far(arrays):
  arrays["flat"] = Array(arrays["flat"].numpy() + np.float32(1e3))


def double(arrays):
  arrays["flat"] = Array(arrays["flat"].numpy().astype(np.float64))


def of_shape(*shape):
  return lambda arrays: arrays.update(flat=Array(np.zeros(shape, np.float32)))


def metric(**values):
  def spoil(reply):
    reply.content["metrics"] = MetricRecord(
      {**reply.content["metrics"], **{k.replace("_", "-"): v for k, v in values.items()}}
    )

  return spoil


def no_count(reply):
  del reply.content["metrics"]["num-examples"]


def extra_record(reply):
  reply.content["surprise"] = ConfigRecord({"a": 1})


def wrong_type(reply):
  reply.content["arrays"] = MetricRecord({"a": 1})


def other_structure(reply):
  reply.content["config"] = ConfigRecord({"structure": "0123"})


def chatty(reply):
  raise OSError("a\nlong " + "word " * 500)


FAULTS = {
  "raises": (raising, "failed: OSError: disk full"),
  "crashes": (erring, "failed: Flower error 8"),
  "says a lot": (chatty, "failed: OSError: a long word"),
  "nan": (flat(one_number(np.nan)), "rejected: mapper/kernel: expected finite values; 1 of 6 are"),
  "inf": (flat(one_number(np.inf)), "rejected: mapper/kernel: expected finite values; 1 of 6 are"),
  "wrong dtype": (flat(double), "rejected: expected float32 of shape (15,) in 'flat'; got"),
  "wrong size": (flat(of_shape(3)), "rejected: expected float32 of shape (15,)"),
  "broadcastable": (flat(of_shape(15, 1)), "rejected: expected float32 of shape (15,)"),
  "extra array": (
    flat(lambda arrays: arrays.update(x=Array(np.zeros(1)))),
    "rejected: expected the array 'flat', perhaps 'rows'; got ['flat', 'x']",
  ),
  "no array": (
    flat(ArrayRecord.clear),
    "rejected: expected the array 'flat', perhaps 'rows'; got []",
  ),
  "empty reply": (no_content, "rejected: expected the records"),
  "extra record": (extra_record, "rejected: expected the records"),
  "record of another type": (wrong_type, "rejected: expected the records"),
  "other structure": (other_structure, "rejected: expected params of structure"),
  "zero examples": (metric(num_examples=0), "rejected: num-examples: expected an int from 1"),
  "negative examples": (metric(num_examples=-3), "rejected: num-examples: expected an int from 1"),
  "nan examples": (metric(num_examples=float("nan")), "rejected: num-examples: expected an int"),
  "float examples": (metric(num_examples=8.0), "rejected: num-examples: expected an int"),
  "list of examples": (metric(num_examples=[8]), "rejected: num-examples: expected an int"),
  "absurd examples": (metric(num_examples=2**62), "rejected: num-examples: expected an int from"),
  "too many examples": (metric(num_examples=Fed.max_examples + 1), "rejected: num-examples"),
  "no examples": (no_count, "rejected: num-examples: expected an int"),
  "nan loss": (metric(loss=float("nan")), "rejected: loss: expected a finite number; got nan"),
  "list of losses": (metric(loss=[1.0]), "rejected: loss: expected a finite number"),
}
