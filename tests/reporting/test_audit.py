"""`afspl audit` of runs that keep to the allow-list, and of clients that do not."""

import json
import shutil
import socket

import jax
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file

from afspl_jax import cli
from afspl_jax.federation.protocol import disclosure_list, wire
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog
from afspl_jax.storage.run_lines import WIRE, read_lines


def audit(folder, capsys, *more):
  status = cli.main(["audit", str(folder), *more])
  return status, capsys.readouterr().out


def test_a_run_is_audited_to_the_last_byte(rich, capsys):
  status, out = audit(rich.path, capsys, "--json")
  found = json.loads(out)
  assert status == 0 and found["closed"] and not found["outside"]
  sums = {tuple(line["where"]): line for line in found["names"]}
  assert sum(line["bytes"] for line in found["clients"]) == sum(rich.bytes_up)
  counted = sum(line["bytes_up"] for line in rich.lines("clients.jsonl"))
  assert sums["train",]["bytes"] == counted
  for parent in (("train",), ("query.hello",)):
    parts = [line["bytes"] for where, line in sums.items() if where[:-1] == parent]
    assert sum(parts) == sums[parent]["bytes"]
  leaves = [line for where, line in sums.items() if where[:-1] == ("train", "arrays", "flat")]
  assert sum(line["numbers"] for line in leaves) == sums["train", "arrays", "flat"]["numbers"]
  groups = {line["where"][-1].split("/")[0] for line in leaves}
  assert groups == set(rich.setup.shared) == set(disclosure_list.LEAVES) - {"sites"}


def test_the_text_fits_into_80_columns(rich, capsys):
  status, out = audit(rich.path, capsys)
  lines = out.splitlines()
  assert status == 0 and max(map(len, lines[1:])) <= 80
  assert f"8 clients sent {len(rich.replies)} messages, 159.0 kB" in lines[0]
  assert "pool/prompts 12 4.6 kB 1,152 floats, 50% of rows" in [" ".join(x.split()) for x in lines]
  ends = " ".join(out.split()).partition("every outgoing value is on the allow-list for ")[2]
  assert ends.startswith("fed.strategy=fedavg,") and ends.endswith("secure.aggregation=False")


def test_one_client_can_be_audited(rich, capsys):
  name = sorted(rich.setup.clients["train"])[0]
  status, out = audit(rich.path, capsys, f"--client={name}")
  assert status == 0 and f"\n{name} " in out and "1 clients sent" in out
  assert cli.main(["audit", str(rich.path), "--client=nobody"]) == 2
  assert f"expected one of {name}, " in capsys.readouterr().err


def test_a_folder_without_a_log_names_the_right_folders(rich, tmp_path, capsys):
  shutil.copy(rich.path / "config.json", tmp_path)
  for folder, said in ((tmp_path, "or a site's own"), (tmp_path / "no", "with config.json")):
    assert cli.main(["audit", str(folder)]) == 2
    assert said in capsys.readouterr().err


def test_a_reply_that_is_not_in_the_log_is_reported(rich, tmp_path, capsys):
  for name in ("config.json", "clients.jsonl"):
    shutil.copy(rich.path / name, tmp_path)
  lines = (rich.path / WIRE).read_text().splitlines(keepends=True)
  (tmp_path / WIRE).write_text("".join(lines[:-1]))
  status, out = audit(tmp_path, capsys)
  assert status == 1 and "that wire.jsonl does not have" in " ".join(out.split())


def test_a_reply_of_a_failed_attempt_counts_too(rich, tmp_path, capsys):
  for name in ("config.json", WIRE):
    shutil.copy(rich.path / name, tmp_path)
  line = rich.lines("clients.jsonl")[-1]
  again = line | {"status": "unused: this attempt at the round failed"}
  lines = [*rich.lines("clients.jsonl"), again]
  (tmp_path / "clients.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
  status, out = audit(tmp_path, capsys)
  said = f"received {line['bytes_up']:,} bytes that wire.jsonl does not have"
  assert status == 1 and said in " ".join(out.split())


@pytest.mark.parametrize("line", ["[]", "{}", '{"round": 1}', "no"])
def test_a_damaged_log_is_reported_with_its_line(rich, tmp_path, capsys, line):
  shutil.copy(rich.path / "config.json", tmp_path)
  (tmp_path / WIRE).write_text(f"{line}\n")
  assert cli.main(["audit", str(tmp_path)]) == 2
  assert f"{WIRE}:1: expected" in capsys.readouterr().err


def test_repeated_rounds_are_reported(rich, tmp_path, capsys):
  shutil.copy(rich.path / "config.json", tmp_path)
  lines = (rich.path / WIRE).read_text().splitlines(keepends=True)
  (tmp_path / WIRE).write_text("".join([*lines, lines[0], lines[-1]]))
  status, out = audit(tmp_path, capsys)
  assert status == 0 and "\n1 messages belong to repeated rounds" in out


# Clients that leak something.


def with_metrics(run, **more):
  return {"metrics": MetricRecord({**run.replies[-1].content["metrics"], **more})}


def with_config(run, **more):
  return {"config": ConfigRecord({**run.replies[-1].content["config"], **more})}


def local_prompt(run):
  file = next((run.path / "clients").rglob("round_*.safetensors"))
  return load_file(file)["own/local/prompt"]


LOSSES = [0.1 * i for i in range(4)]

# The leak, and what the audit reports.
LEAKS = {
  "a local prompt": (
    lambda run: {"own": ArrayRecord({"flat": Array(local_prompt(run).ravel())})},
    "train own flat: not on the list: 384 bytes of float32, shape (64,)",
  ),
  "a local prompt behind the shared rows": (
    lambda run: {"arrays": longer(run, local_prompt(run).ravel())},
    "train arrays flat: expected float32 numbers, all of them rows of the shared leaves;",
  ),
  "a text behind an array's numbers": (
    lambda run: {"arrays": longer(run, np.zeros(0, np.float32), b"a red square")},
    "train arrays flat: expected float32 numbers, all of them rows of the shared leaves;",
  ),
  "losses of examples": (
    lambda run: with_metrics(run, losses=LOSSES),
    "train metrics losses: not on the list: a list of 4 float",
  ),
  "losses of examples under a name on the list": (
    lambda run: with_metrics(run, loss=LOSSES),
    "train metrics loss: expected one number; got a list of 4 float",
  ),
  "an id": (
    lambda run: with_metrics(run, **{example(run).id: 1.0}),
    lambda run: f"train metrics {example(run).id}: not on the list: 1.0",
  ),
  "a caption": (
    lambda run: with_config(run, note=example(run).references[0]),
    lambda run: f"train config note: not on the list: {example(run).references[0]!r}",
  ),
  "a caption under a name on the list": (
    lambda run: with_config(run, structure=example(run).references[0]),
    lambda run: f"got {example(run).references[0]!r}",
  ),
  "a path": (
    lambda run: with_config(run, data=str(run.path)),
    "train config data: not on the list",
  ),
  "a host": (
    lambda run: with_config(run, **{socket.gethostname(): 1}),
    f"train config {socket.gethostname()}: not on the list",
  ),
  "bytes": (lambda run: with_config(run, image=b"PNG"), "not on the list: bytes 3"),
  "a path in an error": (
    lambda run: Error(2, f"WireError: {run.path}/features: no such file"),
    "train error: a path or host: WireError",
  ),
  "a host in an error": (
    lambda run: Error(2, f"WireError: {socket.gethostname()} is down"),
    "train error: a path or host: WireError",
  ),
  "a caption in an error": (
    lambda run: Error(2, f"KeyError: {example(run).references[0]}"),
    "train error: expected an error of type WireError",
  ),
}


def example(run):
  return run.setup.splits["train"].examples[0]


def longer(run, values, behind=b""):
  arrays = run.replies[-1].content["arrays"]
  flat = Array(np.concatenate([arrays["flat"].numpy(), values]))
  flat.data += behind
  return ArrayRecord({"flat": flat, "rows": arrays["rows"]})


def logged(run, folder, planted, template=None, **privacy):
  """Writes a folder with a log of a client's reply that contains a leak."""
  found = json.loads((run.path / "config.json").read_text())
  found["config"]["privacy"] |= privacy
  (folder / "config.json").write_text(json.dumps(found))
  content = planted
  if not isinstance(planted, Error):
    content = RecordDict({**run.replies[-1].content, **planted})
  client = read_lines(run.path / WIRE)[-1]["client"]
  record = DisclosureLog(folder, run.setup.shared if template is None else template, sync=False)
  record.add(run.sent[-1], Message(content, reply_to=run.sent[-1]), client)


@pytest.mark.parametrize("what", LEAKS)
def test_a_leak_is_named(rich, tmp_path, capsys, what):
  plant, message = LEAKS[what]
  logged(rich, tmp_path, plant(rich))
  status, out = audit(tmp_path, capsys)
  assert status == 1 and "NOT ALLOWED: 1 outgoing values are not on the allow-list" in out
  reported = " ".join(out.partition("NOT ALLOWED")[2].split())
  wanted = message(rich) if callable(message) else message
  assert " ".join(wanted.split()) in reported


def test_the_same_reply_without_a_leak_is_allowed(rich, tmp_path, capsys):
  logged(rich, tmp_path, {})
  assert audit(tmp_path, capsys)[0] == 0


def test_with_dp_other_metrics_are_leaks(rich, tmp_path, capsys):
  logged(rich, tmp_path, {}, dp="central", clipping="adaptive")
  status, out = audit(tmp_path, capsys, "--json")
  reported = {line["what"]: line["why"] for line in json.loads(out)["outside"]}
  metrics = {f"train  metrics  {name}" for name in rich.replies[-1].content["metrics"]}
  assert status == 1 and reported.keys() == metrics
  assert "expected the number 1; got " in reported["train  metrics  num-examples"]


def test_with_dp_sgd_all_metrics_except_the_weight_are_leaks(rich, tmp_path, capsys):
  logged(rich, tmp_path, {}, example_clip=0.5)
  status, out = audit(tmp_path, capsys, "--json")
  reported = {line["what"] for line in json.loads(out)["outside"]}
  metrics = {f"train  metrics  {name}" for name in rich.replies[-1].content["metrics"]}
  assert status == 1 and reported == metrics - {"train  metrics  num-examples"}


def test_with_dp_an_update_and_its_clipping_bit_are_allowed(rich, tmp_path, capsys):
  all_alike = MetricRecord({"num-examples": 1, "within_clip": 1.0})
  logged(rich, tmp_path, {"metrics": all_alike}, dp="central", clipping="adaptive")
  assert audit(tmp_path, capsys)[0] == 0


def test_a_local_leaf_among_the_shared_leaves_is_named(rich, tmp_path, capsys):
  """As if the split into shared and local leaves were wrong."""
  whole = jax.tree.map(np.asarray, rich.setup.global_params(rich.setup.shared))
  logged(rich, tmp_path, {"arrays": wire.pack(whole)}, whole)
  status, out = audit(tmp_path, capsys)
  assert status == 1 and "arrays  local/prompt: a leaf that is not on the list" in out
