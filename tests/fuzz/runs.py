"""A run's folder, as it is read to be reported, audited, watched, used or gone on with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from afspl_jax.evaluation.score_file import score_file
from afspl_jax.federation.privacy.ledger import Ledger
from afspl_jax.reporting import audit, status
from afspl_jax.reporting.html.files import read_run
from afspl_jax.reporting.html.page import render_page
from afspl_jax.runs.trained.finished_run import open_run
from tests.fuzz.target import Target
from tests.reporting.html.made_run import made_run


def run(file: str, look: Callable[[Path], object], cost: float = 0.005, **clear: tuple) -> Target:
  """A file of a small run's folder."""

  def make(folder: Path) -> None:
    made = made_run(folder / "run", clients=2, rounds=2, **{"fed.clients_per_round": 2})
    shutil.rmtree(made / "predictions")
    (made / "sites").mkdir()
    entries = {"site": "a", "num-examples": 7}
    line = {"round": 1, "client": "site 0000", "type": "train", "time": 1.5, "bytes": 40}
    line |= {"sha256": "ab", "structure": "cd", "down": {"bytes": 9, "names": ["arrays/flat"]}}
    array = {"dtype": "float32", "shape": [6], "bytes": 152}
    held = {"arrays": {"bytes": 152, "entries": {"flat": array}, "rows": [2]}}
    held |= {"config": {"bytes": 9, "entries": entries}}
    leaves = [{"name": "pool/keys", "rows": 2, "width": 3, "dtype": "float32"}]
    lines = [{"structure": "cd", "leaves": leaves}, line | {"records": held}]
    lines.append(line | {"error": {"code": 1, "reason": "WireError: no"}})
    (made / "wire.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    ledger = Ledger(made / "privacy.json")
    ledger.charge(["a", "b"])

  return Target(make, f"run/{file}", lambda folder: look(folder / "run"), cost=cost, **clear)


def _report(folder: Path) -> None:
  render_page([read_run(folder)], images=False)


def _predictions(folder: Path) -> None:
  score_file(folder / "predictions.jsonl")


def _predicted(folder: Path) -> None:
  line = {"prediction": "a dog", "references": ["a dog", "a cat"]}
  lines = [line, line | {"question": "what ?"}]
  (folder / "predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


TARGETS = {
  "run_config": run("config.json", open_run),
  "run_config_status": run("config.json", status.describe_run),
  "run_config_audit": run("config.json", audit.audit_run),
  "run_config_report": run("config.json", _report, cost=0.1),
  "run_metrics_status": run("metrics.jsonl", status.describe_run),
  "run_clients_status": run("clients.jsonl", status.describe_run),
  "run_metrics_report": run("metrics.jsonl", _report, cost=0.1),
  "run_clients_report": run("clients.jsonl", _report, cost=0.1),
  "run_sites_report": run("sites.jsonl", _report, cost=0.1),
  "run_partition_report": run("partition.json", _report, cost=0.1),
  "run_wire_audit": run("wire.jsonl", audit.audit_run),
  "run_clients_audit": run("clients.jsonl", audit.audit_run),
  "run_ledger": run("privacy.json", lambda folder: Ledger(folder / "privacy.json").most()),
  "predictions": Target(_predicted, "predictions.jsonl", _predictions, (ValueError,)),
}
