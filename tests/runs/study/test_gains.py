"""What a site gains by joining: from the runs of a study to its tables and its picture."""

import json
import sys

import pytest
from PIL import Image

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.study import Study, cells
from afspl_jax.runs.study.gain_plot import write_gain_plot
from afspl_jax.runs.study.gains import gain_panels, gain_tables, gains_as_text
from afspl_jax.runs.study.results import FINISHED, read_results

SKEWED = {"data.partition": "dirichlet"}
STUDY = Study(
  base=Experiment(),
  settings={
    "natural, all examples": {},
    "natural, 32 examples": {"data.max_examples": 32},
    "natural, 300 examples": {"data.max_examples": 300},
    "Dirichlet, 32 examples": {**SKEWED, "data.max_examples": 32},
  },
  variants={
    "alone": {"fed.share": "none"},
    "dense FedAvg": {"uplink.select": "dense"},
    "full AFSPL": {},
  },
  seeds=(0, 1, 2),
  fewer_seeds={"Dirichlet, 32 examples": (0,)},
  alone="alone",
)


def put(workdir, setting, variant, seed, sizes, **splits) -> None:
  """Writes what a run would have measured, and the training examples of its clients."""
  wanted = (setting, variant, seed)
  (cell,) = [c for c in cells(STUDY) if (c.setting, c.variant, c.seed) == wanted]
  folder = workdir / "runs" / cell.run
  folder.mkdir(parents=True)
  lines = [{"round": 2, "split": split, **line} for split, line in splits.items()]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  parts = [{"round": 1, "client": "late", "num_examples": None}]
  parts += [
    {"round": r, "client": str(i), "num_examples": n} for r in (1, 2) for i, n in enumerate(sizes)
  ]
  (folder / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in parts))
  (folder / FINISHED).touch()


@pytest.fixture
def measured(tmp_path):
  """By hand: full gains 2, 3 and 4 CIDEr with 32 examples, and 1 with all; dense gains 0.5."""
  for seed in (0, 1, 2):
    alone, ours = {"cider": 3.0 + seed, "vqa_accuracy": 0.5}, {"cider": 5.0 + 2 * seed}
    put(tmp_path, "natural, 32 examples", "alone", seed, (32, 32), test_personal=alone)
    put(
      tmp_path,
      "natural, 32 examples",
      "full AFSPL",
      seed,
      (32, 32),
      test={"cider": 99.0, "vqa_accuracy": 0.9},
      test_personal=ours | {"vqa_accuracy": 0.625},
    )
  put(tmp_path, "natural, all examples", "alone", 0, (400, 600), test_personal={"cider": 6.0})
  whole = {"cider": 7.0}
  put(tmp_path, "natural, all examples", "full AFSPL", 0, (400, 600), test_personal=whole)
  # It has no personalised model: its sites use the global one.
  put(tmp_path, "natural, all examples", "dense FedAvg", 0, (400, 600), test={"cider": 6.5})
  put(tmp_path, "natural, all examples", "full AFSPL", 1, (400, 600), test_personal=whole)
  return tmp_path


def test_gains_are_paired_by_seed_and_in_the_order_of_sizes(measured):
  panels = gain_panels(STUDY, read_results(STUDY, measured))
  assert [(panel.group, panel.score) for panel in panels] == [
    ("natural", "CIDEr"),
    ("natural", "VQA accuracy"),
  ]
  cider = panels[0].gains
  assert list(cider) == ["dense FedAvg", "full AFSPL"]
  few, many = cider["full AFSPL"]
  # The standard deviation of 2, 3 and 4 is 1; t of 2 degrees of freedom is 4.302653.
  assert few.difference == pytest.approx((3.0, 4.302653 / 3**0.5, 3))
  assert (few.size, many.size, many.examples) == ("32", "all (500)", 500)
  assert (many.difference.mean, many.difference.seeds) == (1.0, 1)  # seed 1 has no pair
  assert [gain.difference.mean for gain in cider["dense FedAvg"]] == [0.5]
  (answers,) = panels[1].gains["full AFSPL"]
  assert answers.difference == pytest.approx((0.125, 0.0, 3))


def test_the_tables_and_the_alternative_text_have_the_numbers(measured):
  results = read_results(STUDY, measured)
  lines = gain_tables(STUDY, results)
  assert "CIDEr, natural:" in lines and "VQA accuracy, natural:" in lines
  assert "| | 32 | all (500) |" in lines
  assert "| dense FedAvg | – | +0.500 |" in lines
  assert "| full AFSPL | +3.000 ± 2.484 | +1.000 |" in lines
  text = gains_as_text(STUDY, gain_panels(STUDY, results))
  assert (
    "CIDEr, natural: dense FedAvg +0.50 at all (500);"
    " full AFSPL +3.00 ± 2.48 at 32, +1.00 at all (500)." in text
  )
  assert f"![{text}](gains.png)" in lines


def test_the_picture_has_its_alternative_text(measured):
  results, path = read_results(STUDY, measured), measured / "gains.png"
  assert write_gain_plot(STUDY, results, path)
  with Image.open(path) as image:
    assert image.size == (920, 350)
    assert image.text["Description"] == gains_as_text(STUDY, gain_panels(STUDY, results))


def test_without_a_variant_alone_or_without_numbers_there_is_nothing(measured, tmp_path_factory):
  study = Study(STUDY.base, STUDY.settings, STUDY.variants, STUDY.seeds)
  empty = tmp_path_factory.mktemp("empty")
  for one, folder in ((study, measured), (STUDY, empty)):
    results = read_results(one, folder)
    assert gain_tables(one, results) == []
    assert not write_gain_plot(one, results, empty / "gains.png")
  assert list(empty.iterdir()) == []


def test_without_matplotlib_there_is_no_picture_and_no_error(measured, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert not write_gain_plot(STUDY, read_results(STUDY, measured), measured / "gains.png")
