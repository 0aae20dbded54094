"""Data sets on disk: written and read through tensorflow-datasets, without TensorFlow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from afspl_jax.config.experiment import Data
from afspl_jax.data.shapes.scene import render
from afspl_jax.data.shapes.sites import SITES, sample_record
from afspl_jax.data.sources import open_source
from afspl_jax.data.tfds_reader import open_prepared, tfds_folder
from afspl_jax.errors import UserError
from afspl_jax.types import Source

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shapes(shapes_dir):
  return {name: open_source(Data(dir=str(shapes_dir)), name) for name in ("train", "test")}


def test_a_prepared_data_set_is_a_source(shapes):
  assert all(isinstance(part, Source) for part in shapes.values())
  assert len(shapes["train"].images()) == 80 and len(shapes["test"].images()) == 20
  assert len(set(shapes["train"].images())) == 80


def test_examples_are_complete(shapes):
  train = shapes["train"]
  examples = [train[i] for i in range(len(train))]
  assert len({example.id for example in examples}) == len(examples) > 80
  assert {example.image for example in examples} == set(train.images())
  assert {example.site for example in examples} == {site.name for site in SITES}
  for example in examples:
    assert example.id.startswith(f"{example.site}-train-")
    assert len(example.references) == (1 if example.question else 5)
    assert all(isinstance(text, str) and text for text in example.references)
    assert example.labels[0] in ("circle", "square", "triangle", "star", "cross", "ring")


def test_images_are_read_as_they_were_rendered(shapes):
  train = shapes["train"]
  examples = {}
  for i in range(len(train)):
    examples.setdefault(train[i].id.partition("-q")[0], []).append(train[i])
  site, seen = SITES[0], set()  # the first site's are drawn first, so `seen` starts empty
  rng = np.random.default_rng((1, 0, 0))
  for i in range(8):
    record = sample_record(site, "train", seen, rng)
    image = render(record.scene, site.look, rng)
    read = examples[f"{site.name}-train-{i:04d}"]
    np.testing.assert_array_equal(train.load_image(read[0].image), image)
    if record.captions:
      assert read[0].references == record.captions
    else:
      found = [(example.question, example.references) for example in read]
      assert found == [(q.text, (q.answer,)) for q in record.questions]


def test_a_fingerprint_is_stable_and_differs_by_split(shapes, shapes_dir):
  again = open_source(Data(dir=str(shapes_dir)), "train")
  assert again.fingerprint == shapes["train"].fingerprint != shapes["test"].fingerprint


def test_importing_and_reading_needs_neither_tensorflow_nor_torch(shapes_dir):
  code = """
import sys
from afspl_jax.config import Data
from afspl_jax.data.sources import open_source
train = open_source(Data(dir=sys.argv[1]), "train")
assert train.load_image(train[0].image).mode == "RGB"
print(sorted({"tensorflow", "torch", "jax"} & set(sys.modules)))
"""
  command = [sys.executable, "-c", code, str(shapes_dir)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().splitlines()[-1] in ("[]", "['jax']")


def test_an_unknown_source_is_named():
  with pytest.raises(UserError, match=r"data.source: expected one of .*folder, .*shapes"):
    open_source(Data(source="flickr30k"), "train")


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"data.dir: expected a folder that can be written") as error:
    open_source(Data(dir=str(tmp_path / "file" / "data")), "train")
  assert "\n" not in str(error.value) and "--config.data.dir" in str(error.value)


def test_the_default_folder_is_that_of_tensorflow_datasets(monkeypatch, tmp_path):
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  assert tfds_folder("") == Path.home() / "tensorflow_datasets"
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert tfds_folder("") == tmp_path
  assert tfds_folder("~/here") == Path.home() / "here"


def in_a_string(named: dict) -> dict:
  """tensorflow-datasets reads the string as JSON once more."""
  whole = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
  return {"pythonClassName": whole, "jsonFeature": {"json": json.dumps({"x": named})}}


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
  "said",
  [
    {"pythonClassName": "foreign.Feature"},
    {"python_class_name": "foreign.Feature"},
    {"type": "foreign.Feature", "content": {}},
    in_a_string({"pythonClassName": "foreign.Feature"}),
    in_a_string({"type": "foreign.Feature", "content": {}}),
  ],
)
def test_features_of_another_module_are_rejected_before_it_is_imported(
  shapes_dir, tmp_path, monkeypatch, said, linked
):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "foreign.py").write_text("raise SystemExit('it was run')")
  folder = tmp_path / "sets"
  shutil.copytree(shapes_dir, folder)
  (file,) = folder.rglob("features.json")
  name, written = file.relative_to(folder).parts[0], file.read_text()
  if linked:
    file.parent.symlink_to(file.parent.rename(tmp_path / "elsewhere"))
  file.write_text(json.dumps(said))
  with pytest.raises(UserError, match=r"features.json: expected .* got 'foreign.Feature'"):
    open_prepared(name, str(folder), "how")
  assert "foreign" not in sys.modules
  file.write_text(written)
  assert open_prepared(name, str(folder), "how").info.features["captions"] is not None


@pytest.mark.parametrize(
  "text",
  ["", "[]", "3", '{"type": 3, "content": 3}', '{"type": "x"}', '{"x": 1}', "[" * 100_000],
)
def test_invalid_features_give_one_error_line(shapes_dir, tmp_path, text):
  folder = tmp_path / "sets"
  shutil.copytree(shapes_dir, folder)
  (file,) = folder.rglob("features.json")
  file.write_text(text)
  with pytest.raises(UserError, match=f"{file.relative_to(folder).parts[0]} under "):
    open_prepared(file.relative_to(folder).parts[0], str(folder), "how")
