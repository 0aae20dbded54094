"""Our replies and parameters as Flower's strategies take and give them."""

import jax
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower


def paths(params):
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def record(params):
  return ArrayRecord({path: Array(leaf) for path, leaf in paths(params).items()})


def messages(replies):
  """What Flower's server would get from these sites."""
  out = []
  for r in replies:
    metrics = {"num-examples": r.num_examples, "train_loss": r.metrics.get("first_loss", 1.0)}
    content = RecordDict({"arrays": record(r.params), "metrics": MetricRecord(metrics)})
    out.append(Message(content, dst_node_id=1, message_type="train"))
  return out


def arrays(theirs, params, replies, round=1):
  """Flower's arrays after a round that began with these params."""
  if hasattr(theirs, "current_arrays"):  # what `configure_train` does
    is_adaptive = isinstance(theirs, flower.fedopt.FedOpt)
    theirs.current_arrays = paths(params) if is_adaptive else record(params)
  return theirs.aggregate_train(round, messages(replies))[0]
