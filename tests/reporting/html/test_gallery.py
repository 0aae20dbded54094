"""Which texts are shown, and with which images."""

import base64
import io
import json

import pytest
from PIL import Image

from afspl_jax.config.experiment import Data
from afspl_jax.data.sources import open_source
from afspl_jax.reporting.html.files import read_run
from afspl_jax.reporting.html.gallery import make_gallery
from tests.reporting.html.made_run import made_run, put


@pytest.fixture
def run(tmp_path, shapes_dir):
  """A run whose predictions are about the shapes world, better and better."""
  path = made_run(tmp_path / "run", **{"data.dir": str(shapes_dir)})
  source = open_source(Data(dir=str(shapes_dir)), "test")
  examples = [source[i] for i in range(len(source))]
  lines, captions = [], [example for example in examples if not example.question]
  for i, example in enumerate(captions):
    words = example.references[0].split()
    text = " ".join(words[: 1 + i * len(words) // len(captions)])
    lines.append({"id": example.id, "prediction": text, "references": example.references})
  for i, example in enumerate(e for e in examples if e.question):
    text = example.references[0] if i % 2 else "no idea"
    lines.append({"id": example.id, "prediction": text, "references": example.references})
    lines[-1]["question"] = example.question
  put(path / "predictions" / "test.jsonl", [line | {"fusion": {}} for line in lines])
  put(path / "predictions" / "test_personal.jsonl", [lines[0] | {"prediction": "my own words"}])
  config = json.loads((path / "config.json").read_text())
  config["facts"]["data"]["test"] = source.fingerprint
  (path / "config.json").write_text(json.dumps(config))
  return path


def test_the_best_are_better_than_the_median_and_these_than_the_worst(run):
  groups = make_gallery(read_run(run), images=False).groups
  scores = {
    name: [float(item.score.removeprefix("CIDEr ")) for item in items]
    for name, items in groups.items()
    if "captions" in name
  }
  assert list(scores) == ["Best captions", "Median captions", "Worst captions"]
  assert min(scores["Best captions"]) > max(scores["Median captions"])
  assert min(scores["Median captions"]) > max(scores["Worst captions"])
  assert {item.score for item in groups["Correct answers"]} == {"Exact match 1.00"}
  assert {item.score for item in groups["Wrong answers"]} == {"Exact match 0.00"}
  assert all(item.question for item in groups["Correct answers"])
  assert "my own words" in [item.personalised for item in groups["Worst captions"]]


def test_each_example_has_its_image(run, shapes_dir):
  item = make_gallery(read_run(run), images=True).groups["Best captions"][0]
  head, _, data = item.image.partition(",")
  assert head == "data:image/jpeg;base64"
  shown = Image.open(io.BytesIO(base64.b64decode(data)))
  source = open_source(Data(dir=str(shapes_dir)), "test")
  (example,) = [source[i] for i in range(len(source)) if source[i].id == item.id]
  image = source.load_image(example.image)
  assert shown.size == image.size
  mean = lambda picture: picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # noqa: E731
  assert all(abs(a - b) < 4 for a, b in zip(mean(shown), mean(image), strict=True))


def test_images_of_other_data_are_not_shown(run):
  config = json.loads((run / "config.json").read_text())
  config["facts"]["data"]["test"] = "other"
  (run / "config.json").write_text(json.dumps(config))
  found = make_gallery(read_run(run), images=True)
  assert "The data on this machine differ" in found.note
  assert not any(item.image for items in found.groups.values() for item in items)


def test_a_missing_shapes_world_is_not_generated(tmp_path):
  folder = tmp_path / "none"
  found = make_gallery(
    read_run(made_run(tmp_path / "run", **{"data.dir": str(folder)})), images=True
  )
  assert "The data are not on this machine" in found.note and not folder.exists()


def test_without_data_the_texts_are_shown(tmp_path):
  fields = {"data.source": "coco_captions", "data.dir": str(tmp_path)}
  found = make_gallery(read_run(made_run(tmp_path / "run", **fields)), images=True)
  assert "The data are not on this machine" in found.note and "Best captions" in found.groups
