"""What leaves a client, byte by byte, in a federation that really ran."""

import math
import re
import socket
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file

from afspl_jax import cli
from afspl_jax.federation.protocol import disclosure_list, wire
from afspl_jax.storage.run_lines import WIRE
from tests.recorded_run import rich_run, scaffold_run

RUN = 16  # numbers in a row that are no coincidence

# All that may leave a client, by kind of message: records, and the names in them.
REPLIES = {
  "query.hello": {"config": {"site", "num-examples"}},
  "train": {
    "arrays": {"flat", "rows"},
    "config": {"structure"},
    "metrics": {
      "num-examples",
      "loss",
      "first_loss",
      "balance",
      "contrast",
      "grad_norm",
      "prompts_chosen",
      "nonfinite_steps",
      "pool_usage_0",
      "pool_usage_1",
      "pool_usage_2",
    },
  },
}

# And with a strategy that corrects gradients.
CONTROLLED = REPLIES | {"train": REPLIES["train"] | {"arrays": {"flat"}, "control": {"flat"}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return rich_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return scaffold_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def secrets(run):
  """Leaves that must stay with their clients: own ones, and what was not sent."""
  files = sorted((run.path / "clients").rglob("round_*.safetensors"))
  return [leaf for file in files for leaf in load_file(file).values()]


@pytest.fixture(scope="module")
def texts(run):
  """What is said of images and asked, names of examples, paths, and the name of this machine."""
  out = {str(run.path), str(Path.home()), str(Path.cwd()), run.config.data.dir}
  out |= {socket.gethostname(), run.config.backbone.t5, run.config.backbone.clip}
  for split in run.setup.splits.values():
    for example in split.examples:
      out |= {example.id, example.question, *example.references}
  return out


def bodies(messages) -> list[bytes]:
  """The bytes of messages as they travel."""
  return [body for message in messages for body in wire.serialized(message).values()]


def leaked_numbers(leaves, bodies) -> bool:
  """Whether the float32 bytes of a leaf, or of RUN numbers of it, are in what travelled."""
  runs: dict[int, set[bytes]] = {}
  for leaf in leaves:
    flat = np.ascontiguousarray(leaf, np.float32).ravel()
    length = min(RUN, flat.size)
    windows = np.lib.stride_tricks.sliding_window_view(flat, length)
    kept = {window.tobytes() for window in windows if np.ptp(window) > 0}  # not one number's
    runs.setdefault(4 * length, set()).update(kept)
  return any(
    body[start : start + size] in found
    for size, found in runs.items()
    for body in bodies
    for start in range(len(body) - size + 1)
  )


def leaked_texts(texts, bodies) -> set[str]:
  """The texts in what travelled; short ones as whole words, since bytes of numbers spell some."""
  everywhere = b"\n".join(bodies).lower()
  values = [body for body in bodies if not body.startswith(b"ArrayChunk")]
  words = set(re.findall(rb"[a-z0-9]{4,}", b"\n".join(values).lower()))
  said = {text: text.lower().encode() for text in texts}
  return {t for t, raw in said.items() if raw in words or (len(raw) >= 8 and raw in everywhere)}


def names(message) -> dict[str, set[str]]:
  return {record: set(values) for record, values in message.content.items()}


def test_every_reply_is_looked_at(run):
  kinds = [reply.metadata.message_type for reply in run.replies]
  assert kinds == ["query.hello"] * 8 + ["train"] * 3 * 4
  sizes = [sum(map(len, wire.serialized(reply).values())) for reply in run.replies]
  assert sizes == run.bytes_up  # what is looked at below is all that was counted
  assert sum(sizes[8:]) == sum(line["bytes_up"] for line in run.lines("clients.jsonl"))


def test_no_leaf_that_stays_leaves_nor_a_part_of_one(run, secrets):
  paths = {name for file in (run.path / "clients").rglob("round_*") for name in load_file(file)}
  assert {"own/local/prompt", "own/local/contrast/kernel", "own/local/contrast/bias"} < paths
  assert "residual/pool/prompts" in paths
  assert not leaked_numbers(secrets, bodies(run.replies))


def test_no_text_id_path_or_host_leaves(run, texts):
  assert len(texts) > 300
  assert leaked_texts(texts, bodies(run.replies)) == set()


def test_only_the_names_on_the_list_leave(run):
  for reply in run.replies:
    assert not reply.has_error()
    assert names(reply) == REPLIES[reply.metadata.message_type]
    rest = reply.metadata
    assert rest.group_id in {"0", "1", "2", "3"} and not rest.delivered_at
    for name, value in reply.content.get("metrics", {}).items():
      assert isinstance(value, int if name == "num-examples" else float)


def test_the_allow_list_is_complete(run, controlled):
  for config, replies in ((run.config, REPLIES), (controlled.config, CONTROLLED)):
    listed = {
      (kind, record, name)
      for kind, records in replies.items()
      for record, names in records.items()
      for name in names
    }
    assert set(disclosure_list.allow_list(config)) == listed


def test_what_is_on_record_is_what_left(run):
  lines = [line for line in run.lines(WIRE) if "leaves" not in line]
  for line, reply in zip(lines, run.replies, strict=True):
    assert line["bytes"] == wire.record_bytes(reply)
    assert line["sha256"] == list(wire.serialized(reply))[-1]
    entries = {name: record["entries"] for name, record in line["records"].items()}
    assert {name: set(values) for name, values in entries.items()} == names(reply)
    for record in {"metrics", "config"} & set(entries):
      assert entries[record] == dict(reply.content[record])


def test_all_that_is_on_record_is_on_the_allow_list(run, controlled, capsys):
  for each in (run, controlled):
    assert cli.main(["audit", str(each.path)]) == 0, capsys.readouterr().out


def test_the_record_itself_tells_no_more(run, texts):
  assert leaked_texts(texts, [(run.path / WIRE).read_bytes()]) == set()


def test_what_leaves_has_the_structure_and_the_size_of_the_shared_leaves(run):
  whole = run.setup.global_params(run.setup.shared)
  shared = {name: leaves for name, leaves in whole.items() if name != "local"}
  assert len(shared) == len(whole) - 1
  leaves = jax.tree.leaves(shared)
  widths = [leaf.shape[-1] if leaf.ndim > 1 else leaf.size for leaf in leaves]
  rows = [leaf.size // width for leaf, width in zip(leaves, widths, strict=True)]
  numbers = sum(math.ceil(r / 2) * width for r, width in zip(rows, widths, strict=True))
  sites = set(run.setup.clients["train"])
  for reply in run.replies:
    config = reply.content["config"]
    assert config.get("site") in {None, *sites}
    if "arrays" in reply.content:
      assert config["structure"] == wire.structure_digest(shared)
      flat, mask = (reply.content["arrays"][name].numpy() for name in ("flat", "rows"))
      assert (flat.shape, flat.dtype) == ((numbers,), np.float32)
      assert (mask.shape, mask.dtype) == ((math.ceil(sum(rows) / 8),), np.uint8)
      assert np.unpackbits(mask).sum() == sum(math.ceil(r / 2) for r in rows)


def test_only_with_controls_does_one_more_name_leave(controlled):
  assert {reply.metadata.message_type for reply in controlled.replies} == set(CONTROLLED)
  for reply in controlled.replies:
    assert names(reply) == CONTROLLED[reply.metadata.message_type]
    if "control" in reply.content:
      sizes = [reply.content[name]["flat"].numpy().size for name in ("arrays", "control")]
      assert sizes[0] == sizes[1]


def test_of_a_control_only_what_was_added_leaves(controlled):
  """Which for the first is all of it, and for a row that had no gradient until now, too."""
  first, later = [], []
  for folder in (controlled.path / "clients").iterdir():
    files = sorted(folder.glob("round_*.safetensors"))
    kept = [load_file(file) for file in files if int(file.stem.split("_")[1]) <= 3]
    for old, new in pairwise([None, *kept]):
      for name, leaf in new.items():
        if not name.startswith("control/"):
          later.append(leaf)  # what is the client's own
        elif old is None:
          first.append(leaf)
        elif leaf.ndim > 1:
          later += list(leaf[(old[name] != 0).all(axis=-1)])
  later, travelled = [x for x in later if x.size >= RUN], bodies(controlled.replies)
  assert len(later) > 100 and not leaked_numbers(later, travelled)
  assert leaked_numbers(first, travelled)


# The same looks, at replies that do give something away.


def reply_with(run, **records):
  """A real reply with other records."""
  reply = run.replies[-1]
  content = RecordDict({**reply.content, **records})
  return Message(content, reply_to=run.sent[-1])


@pytest.mark.parametrize("name", ["own/local/prompt", "residual/pool/prompts"])
def test_a_leaf_in_a_reply_would_be_seen_and_so_would_a_row_of_it(run, secrets, name):
  file = next((run.path / "clients").rglob("round_*"))
  leaf = load_file(file)[name].reshape(-1, 16)
  row = leaf[np.flatnonzero(np.ptp(leaf, axis=1))[-1]]
  template = jax.tree.map(np.array, run.setup.shared)
  for planted in ({**template, "local": leaf}, {**template, "visual_prompt": np.tile(row, (4, 1))}):
    reply = reply_with(run, arrays=wire.pack(planted))
    assert leaked_numbers(secrets, bodies([reply]))
  honest = reply_with(run, arrays=wire.pack(template))
  assert not leaked_numbers(secrets, bodies([honest]))


@pytest.mark.parametrize("what", ["caption", "question", "answer", "id", "path"])
def test_a_text_in_a_reply_would_be_seen(run, texts, what):
  examples = run.setup.splits["train"].examples
  (caption, *_), asked = examples[0].references, next(e for e in examples if e.question)
  text = {
    "caption": caption,
    "question": asked.question,
    "answer": next(e.references[0] for e in examples if e.question and len(e.references[0]) > 3),
    "id": examples[0].id,
    "path": str(run.path),
  }[what]
  metrics = MetricRecord({**run.replies[-1].content["metrics"], text: 1.0})
  config = ConfigRecord({**run.replies[-1].content["config"], "note": f"of {text}, today"})
  for reply in (reply_with(run, metrics=metrics), reply_with(run, config=config)):
    assert text in leaked_texts(texts, bodies([reply]))
    assert names(reply) != REPLIES["train"]
