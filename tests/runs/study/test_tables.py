import json
import math
from pathlib import Path

import pytest

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.study import Study, cells
from afspl_jax.runs.study.results import (
  FINISHED,
  Estimate,
  estimate,
  read_results,
  write_results,
)
from afspl_jax.runs.study.tables import format_tables, write_tables

STUDY = Study(
  base=Experiment(),
  settings={"iid": {"data.partition": "iid"}, "natural": {}},
  variants={"full AFSPL": {}, "dense FedAvg": {"optim.balance": 0}, "other": {"fed.rounds": 1}},
  seeds=(0, 1, 2),
)


def put(workdir: Path, setting: str, variant: str, seed: int, done=True, **splits) -> None:
  """Writes what a run would have measured: keys of each split's line."""
  wanted = (setting, variant, seed)
  (cell,) = [c for c in cells(STUDY) if (c.setting, c.variant, c.seed) == wanted]
  folder = workdir / "runs" / cell.run
  folder.mkdir(parents=True)
  lines = [{"round": 1, "split": "val", "cider": 77.0}]
  lines += [{"round": 2, "split": split, **line} for split, line in splits.items()]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  if done:
    (folder / FINISHED).touch()


def tables(workdir: Path) -> dict[str, dict[str, list[dict[str, str]]]]:
  """Rows by setting and variant, of every table: text by the column's name."""
  out: dict = {}
  for line in format_tables(STUDY, read_results(STUDY, workdir), "afspl ablate x").splitlines():
    if line.startswith("## "):
      heads, setting = [], out.setdefault(line.removeprefix("## ").split(" (")[0], {})
    elif line.startswith("| ---"):
      pass
    elif line.startswith("|"):
      parts = [part.strip() for part in line.strip("|").split("|")]
      if parts[0] == "":
        heads = parts
      else:
        row = dict(zip(heads, parts, strict=True))
        setting.setdefault(row.pop(""), []).append(row)
  return out


def test_the_interval_is_students_t():
  # By hand: mean 2, standard deviation 1, t of 2 degrees of freedom 4.302653, over sqrt(3).
  assert estimate([1.0, 2.0, 3.0]) == pytest.approx(Estimate(2.0, 4.302653 / math.sqrt(3), 3))
  # t of 1 degree of freedom is 12.706205; the standard deviation of 1 and 2 is sqrt(1/2).
  assert estimate([1.0, 2.0]) == pytest.approx(Estimate(1.5, 12.706205 / 2, 2))


def test_one_seed_has_no_interval_and_none_no_estimate():
  assert estimate([]) is None
  one = estimate([0.25])
  assert one is not None and one.text(3) == "0.250" and math.isnan(one.half_width)


def test_a_cell_of_the_table_is_the_mean_over_seeds_with_its_interval(tmp_path):
  for seed, cider in enumerate((1.0, 2.0, 3.0)):
    test = {"cider": cider, "bleu4": 0.5, "exact_match": 0.25, "bytes_up": 3_000_000}
    put(tmp_path, "iid", "full AFSPL", seed, test=test, test_personal={"cider": 4.0})
  (row,) = tables(tmp_path)["iid"]["full AFSPL"]
  assert row["CIDEr"] == "2.000 ± 2.484"
  assert row["BLEU-4"] == "0.500 ± 0.000" and row["exact match"] == "0.250 ± 0.000"
  assert "VQA accuracy" not in row
  assert row["CIDEr, personalised"] == "4.000 ± 0.000"
  assert row["MB up"] == "3.00 ± 0.00"


def test_the_difference_is_paired_by_seed(tmp_path):
  for seed, cider in enumerate((1.0, 5.0, 9.0)):
    put(tmp_path, "iid", "full AFSPL", seed, test={"cider": cider})
  for seed, cider in ((0, 1.5), (2, 10.0)):
    put(tmp_path, "iid", "other", seed, test={"cider": cider})
  rows = tables(tmp_path)["iid"]
  # By hand: +0.5 and +1.0 have mean 0.75 and standard deviation 0.5 / sqrt(2).
  assert rows["other (2 of 3 seeds)"][0]["CIDEr − full AFSPL"] == "+0.750 ± 3.177"
  assert rows["full AFSPL"][0]["CIDEr − full AFSPL"] == ""
  assert rows["dense FedAvg"][0]["CIDEr − full AFSPL"] == "–"


def test_settings_together_are_paired_by_setting_and_seed(tmp_path):
  ciders = {("iid", 0): (1.0, 2.0), ("iid", 1): (3.0, 3.0), ("natural", 0): (10.0, 12.0)}
  for (setting, seed), (full, other) in ciders.items():
    put(tmp_path, setting, "full AFSPL", seed, test={"cider": full})
    put(tmp_path, setting, "other", seed, test={"cider": other})
  put(tmp_path, "natural", "other", 1, test={"cider": 99.0})  # nothing to compare it with
  together = tables(tmp_path)["All settings together"]
  # By hand: +1, 0 and +2 have mean 1 and standard deviation 1.
  (row,) = together["other"]
  assert row == {
    "CIDEr − full AFSPL": "+1.000 ± 2.484",
    "CIDEr, personalised − full AFSPL": "–",
    "pairs": "3",
  }
  assert together["dense FedAvg"][0]["pairs"] == "0"
  assert "full AFSPL" not in together


def test_bytes_are_relative_to_the_reference_of_the_same_setting_and_seed(tmp_path):
  put(tmp_path, "iid", "dense FedAvg", 0, test={"cider": 1.0, "bytes_up": 4000})
  put(tmp_path, "natural", "dense FedAvg", 0, test={"cider": 1.0, "bytes_up": 100})
  put(tmp_path, "iid", "full AFSPL", 0, test={"cider": 1.0, "bytes_up": 1000})
  put(tmp_path, "natural", "full AFSPL", 1, test={"cider": 1.0, "bytes_up": 100})
  found = tables(tmp_path)
  name = "full AFSPL (1 of 3 seeds)"
  assert found["iid"][name][0]["% of dense FedAvg"] == "25.0"
  assert found["natural"][name][0]["% of dense FedAvg"] == "–"


def test_a_reference_that_sends_nothing_gives_no_percentage(tmp_path):
  for variant in ("dense FedAvg", "full AFSPL"):
    put(tmp_path, "iid", variant, 0, test={"cider": 1.0, "bytes_up": 0})
  (row,) = tables(tmp_path)["iid"]["full AFSPL (1 of 3 seeds)"]
  assert row["MB up"] == "0.00" and row["% of dense FedAvg"] == "–"


def test_a_missing_or_infinite_number_is_a_dash(tmp_path):
  put(tmp_path, "iid", "full AFSPL", 0, test={"cider": 1.0, "bleu4": None})
  answers = {"vqa_accuracy": 0.5, "exact_match": 0.5}
  put(tmp_path, "iid", "other", 0, test=answers, test_personal=answers)
  (row,) = tables(tmp_path)["iid"]["full AFSPL (1 of 3 seeds)"]
  assert row["CIDEr"] == "1.000"
  for name in (
    "BLEU-4",
    "exact match",
    "VQA accuracy",
    "CIDEr, personalised",
    "exact match, personalised",
    "VQA accuracy, personalised",
    "CIDEr, sample",
    "personalised, sample",
    "MB up",
  ):
    assert row[name] == "–"
  (empty,) = tables(tmp_path)["natural"]["other"]
  assert set(empty.values()) == {"–"}


def test_a_second_table_has_the_numbers_of_some_runs(tmp_path):
  put(tmp_path, "iid", "full AFSPL", 0, test={"cider": 1.0}, test_mean_fusion={"changed": 0.5})
  found = tables(tmp_path)["iid"]
  assert found["full AFSPL (1 of 3 seeds)"][1] == {"changed": "0.500"}
  assert found["other"][1] == {"changed": "–"}


def test_a_missing_run_is_named_with_its_last_reason(tmp_path):
  for seed in (0, 1):
    put(tmp_path, "iid", "full AFSPL", seed, test={"cider": 1.0})
  put(tmp_path, "iid", "full AFSPL", 2, done=False, test={"cider": 1.0})
  runs = {(c.variant, c.seed): c.run for c in cells(STUDY) if c.setting == "iid"}
  failures = [
    {"run": runs["other", 1], "reason": "first"},
    {"run": runs["other", 1], "reason": "out of memory"},
    {"run": runs["full AFSPL", 0], "reason": "fixed since"},
  ]
  text = "".join(json.dumps(line) + "\n" for line in failures)
  (tmp_path / "failures.jsonl").write_text(text + '{"run": "cut sh')
  table = format_tables(STUDY, read_results(STUDY, tmp_path), "x")
  iid = table[table.index("## iid") : table.index("## natural")]
  assert "- full AFSPL, seed 2: not finished" in iid
  assert "- other, seed 1: out of memory" in iid
  assert "- other, seed 0, 2: not finished" in iid
  assert "first" not in iid and "fixed" not in table


def test_the_table_names_its_command_and_explains_every_column(tmp_path):
  put(tmp_path, "iid", "full AFSPL", 0, test={"cider": 1.0}, newcomer_after={"cider": 1.0})
  text = format_tables(STUDY, read_results(STUDY, tmp_path), "afspl ablate c.py --workdir=w")
  assert "`afspl ablate c.py --workdir=w`" in text.splitlines()[0]
  assert "## iid (3 seeds)" in text
  rows = tables(tmp_path)["iid"]["full AFSPL (1 of 3 seeds)"]
  for name in [name for row in rows for name in row]:
    assert f"- **{name}**: " in text


def test_results_hold_every_number_of_every_cell(tmp_path):
  put(tmp_path, "iid", "other", 1, test={"cider": 1.0, "anything": 2}, test_blind={"cider": 0.5})
  results = read_results(STUDY, tmp_path)
  write_tables(STUDY, results, "x", tmp_path / "table.md")
  write_results(results, tmp_path / "results.json")
  found = json.loads((tmp_path / "results.json").read_text())
  assert len(found) == len(cells(STUDY)) == 18
  (one,) = [line for line in found if line["metrics"]]
  assert (one["setting"], one["variant"], one["seed"]) == ("iid", "other", 1)
  assert one["finished"] and (tmp_path / one["run"] / "metrics.jsonl").exists()
  assert one["metrics"] == {
    "test": {"round": 2, "split": "test", "cider": 1.0, "anything": 2},
    "test_blind": {"round": 2, "split": "test_blind", "cider": 0.5},
  }
  assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "runs", "table.md"]
