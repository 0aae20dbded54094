"""Any data set of tensorflow-datasets by its fields: small ones, written without TensorFlow."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import MissingData
from afspl_jax.data.records import number_text
from afspl_jax.data.sources import open_sources
from afspl_jax.errors import UserError
from afspl_jax.reporting.data_check import check_data_set
from tests.data.folders import SPLITS, examples

SIZE = 40


class Scans(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images with captions, questions, classes and sites; no validation split."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    text = tfds.features.Text()
    spoken = {"text": np.str_, "language": tfds.features.ClassLabel(names=["en", "de"])}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "scan": tfds.features.Image(encoding_format="png"),
          "said": tfds.features.Sequence(spoken),
          "report": text,
          "scan/id": np.int64,
          "asked": tfds.features.Sequence(text),
          "answered": tfds.features.Sequence(text),
          "one": {"question": text, "answers": tfds.features.Sequence(text)},
          "organ": tfds.features.ClassLabel(names=["head", "chest"]),
          "where": text,
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(0), "test": self._generate_examples(1000)}

  def _generate_examples(self, start):
    for i in range(start, start + SIZE):
      png = io.BytesIO()
      Image.new("L", (4, 3), i % 256).save(png, "PNG")
      png.seek(0)
      yield (
        i,
        {
          "scan": png,
          "said": [{"text": f" {i} {j} ", "language": j} for j in range(2)],
          "report": " " if i % SIZE == 3 else f"report {i}",
          "scan/id": i,
          "asked": ["what?", "where?"],
          "answered": ["this", "here"],
          "one": {"question": "why?", "answers": ["so", " "]},
          "organ": i % 2,
          "where": f"site{i % 3}",
        },
      )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("tfds")
  tfds.disable_progress_bar()
  Scans(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def opened(folder: Path, fields: str, **more):
  data = Data(source="tfds:scans", dir=str(folder), fields=fields, **more)
  return open_sources(data, SPLITS)


def test_fields_map_roles_to_features(folder):
  fields = "image=scan, captions=said/text, id=scan/id, labels=organ, site=where"
  sources = opened(folder, fields)
  found = {example.id: example for example in examples(sources)}
  assert sorted(map(int, found)) == [*range(SIZE), *range(1000, 1000 + SIZE)]
  assert [len(sources[split]) for split in SPLITS] == [35, 5, 40]  # validation is a slice of train
  example = found["7"]
  assert (example.references, example.labels, example.site) == (("7 0", "7 1"), ("chest",), "site1")
  for split, source in sources.items():
    for key, example in zip(source.images(), examples({split: source}), strict=True):
      assert source.load_image(key).getpixel((0, 0)) == (int(example.id) % 256,) * 3


def test_two_splits_that_mean_one_are_rejected(folder, tmp_path):
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  (info,) = tmp_path.rglob("dataset_info.json")
  info.write_text(info.read_text().replace('"name": "test"', '"name": "Training"'))
  with pytest.raises(UserError, match=r"at most once, .*; got (train, Training|Training, train)\."):
    opened(tmp_path, "image=scan,captions=said/text")


def test_an_image_may_have_one_or_several_questions(folder):
  several = examples({"test": opened(folder, "image=scan,question=asked,answers=answered")["test"]})
  assert [(e.id, e.question, e.references) for e in several[:2]] == [
    ("test/0-q0", "what?", ("this",)),
    ("test/0-q1", "where?", ("here",)),
  ]
  fields = "image=scan,captions=said/text,question=one/question,answers=one/answers"
  both = opened(folder, fields)["test"]
  assert (both[0].id, both[0].question, both[0].references[0][-1]) == ("test/0", "", "0")
  assert (both[1].id, both[1].question, both[1].references) == ("test/0-q0", "why?", ("so",))
  asked = opened(folder, "image=scan,question=where,answers=organ")["test"]  # classes are answers
  assert asked[0].references[0] in ("head", "chest")


def test_a_malformed_record_is_named_and_left_out_within_the_limit(folder, capsys):
  with pytest.raises(UserError, match=r"scans/1\.0\.0, test: record \d+: \"captions\" must be"):
    examples({"test": opened(folder, "image=scan,captions=report")["test"]})
  sources = opened(folder, "image=scan,captions=report", max_bad=2)
  assert len(examples(sources)) == 2 * SIZE - 2
  assert capsys.readouterr().out.count("left out 1 malformed records (1 captions)") == 2


def test_a_repeated_id_is_a_bad_record_that_prepare_lists(folder):
  fields = "image=scan,captions=said/text,id=where"
  with pytest.raises(UserError, match=r'test: record \d+: "id" must be unique; got'):
    examples({"test": opened(folder, fields)["test"]})
  found = check_data_set(Data(source="tfds:scans", dir=str(folder), fields=fields))
  assert sum("test: record" in fault for fault in found.errors["id again"]) == SIZE - 3


@pytest.mark.parametrize(
  "value, text",
  [(3, "3"), (np.float32(2), "2"), (np.float32(0.1), "0.1"), (np.float64("nan"), ""), (True, "")],
)
def test_a_number_is_a_text_without_needless_digits_and_nan_is_none(value, text):
  assert number_text(value) == text


def test_fields_change_the_fingerprint(folder):
  prints = {
    source.fingerprint
    for fields in ("image=scan,captions=report", "image=scan,captions=said/text")
    for source in opened(folder, fields).values()
  }
  assert len(prints) == 6


def test_fields_do_not_change_the_fingerprint_of_images(folder):
  pictures = {
    source.images_fingerprint
    for fields in ("image=scan,captions=report", "image=scan,captions=said/text")
    for source in opened(folder, fields).values()
  }
  assert len(pictures) == 3


@pytest.mark.parametrize(
  "fields, complaint",
  [
    ("", "expected a list such as image=image,captions=caption/text, with image, and captions or"),
    ("captions=report", "with image, and captions or question and answers"),
    ("image=scan,question=report", "with image, and captions or question and answers"),
    ("image=scan,caption=report", "with each of image, captions, question, answers, labels, site,"),
    ("image=scan,captions", "got 'captions' in"),
    ("image=scan,captions=report,captions=where", "at most once; got 'captions=where'"),
    ("image=scan,captions=texts", "got 'texts'. It has answered, asked, one/answers, one/question"),
    ("image=report,captions=report", "expected for image an image, not within another feature"),
    ("image=scan,captions=scan", "expected for captions no image; got 'scan', which is Image"),
  ],
)
def test_fields_that_do_not_fit_are_named(folder, fields, complaint):
  with pytest.raises(UserError, match=rf"^data\.fields: .*{re.escape(complaint)}"):
    opened(folder, fields)


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_file_is_one_clear_line(folder, tmp_path, damage):
  shutil.copytree(folder / "scans", tmp_path / "scans")
  (file,) = tmp_path.glob("scans/1.0.0/*-test.array_record*")
  content = file.read_bytes()
  if damage == "gone":
    file.unlink()
  else:
    half = len(content) // 2
    file.write_bytes(content[:half] + (b"x" * half if damage == "other" else b""))
  test = opened(tmp_path, "image=scan,captions=said/text")["test"]
  for read in (lambda: len(test), lambda: test.load_image(test.images()[0])):
    with pytest.raises(UserError, match=r", test: record 1: expected .* Prepare the data") as error:
      read()
    assert "\n" not in str(error.value)


def test_the_error_of_an_unprepared_data_set_says_how_to_prepare_it(tmp_path):
  with pytest.raises(MissingData, match=r"no scans is prepared under .*\n.*\n +tfds build scans"):
    opened(tmp_path, "image=scan,captions=report")
  for source in ("tfds", "tfds:", "folder:", "folder:x", "tfd:x"):
    with pytest.raises(UserError, match=r"^data\.source: expected one of .*tfds:NAME; got"):
      open_sources(Data(source=source), SPLITS)
