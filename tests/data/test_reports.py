"""Reports of studies: the real texts with small images, and wrong records."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afspl_jax.data.bad_records import MissingData
from afspl_jax.data.image_files import FileSource
from afspl_jax.data.records import read_json_file
from afspl_jax.errors import UserError
from tests.data.folders import SPLITS, examples, images, opened, real, write_images, write_json


def study(i: int, **values) -> dict:
  named = [f"CXR{i}/{view}.png" for view in range(2)]
  return {"id": f"CXR{i}", "report": f"No finding {i} .", "image_path": named} | values


def write(folder: Path, train: list) -> Path:
  write_images(folder / "images", [f"CXR{i}/{view}.png" for i in range(9) for view in range(2)])
  content = {"train": train, "val": [study(7)], "test": [study(8)]}
  write_json(folder / "annotation.json", content)
  return folder


def test_a_study_is_one_montage_of_its_images(tmp_path):
  sources = opened("reports", write(tmp_path, [study(i) for i in range(5)]))
  assert [len(source) for source in sources.values()] == [5, 1, 1]
  example = sources["validation"][0]
  assert (example.id, example.image, example.references) == ("CXR7", "CXR7", ("No finding 7 .",))
  picture = np.asarray(sources["validation"].load_image("CXR7"))
  assert picture.shape == (8, 8, 3)
  shown = picture[2:6, :, 0]  # in the middle, greys 14 and 15 side by side
  assert set(shown[:, :4].ravel()) >= {14} and set(shown[:, 4:].ravel()) >= {15}
  assert not picture[:2].any() and not picture[6:].any()


def test_the_lists_may_have_other_names_of_their_splits(tmp_path):
  folder = write(tmp_path, [study(i) for i in range(5)])
  content = {"Train": [study(0)], "train": [study(1)], "valid": [study(7)], "test": [study(8)]}
  write_json(folder / "annotation.json", content)
  assert [len(source) for source in opened("reports", folder).values()] == [2, 1, 1]
  write_json(folder / "annotation.json", {"train": [study(0)], "test": [study(8)]})
  with pytest.raises(UserError, match='expected an object with a list "val"'):
    opened("reports", folder)


def test_another_image_of_a_study_changes_the_fingerprint(tmp_path):
  folder = write(tmp_path, [study(i) for i in range(5)])
  first = opened("reports", folder)
  Image.new("L", (40, 30)).save(folder / "images" / "CXR7" / "1.png")
  second = opened("reports", folder)
  same = [first[split].fingerprint == second[split].fingerprint for split in SPLITS]
  assert same == [True, False, True]


@pytest.mark.parametrize(
  "bad, complaint",
  [
    ([], "train 3: expected a JSON object; got []"),
    (study(2, id=None), 'train 3: "id" must be text or a number'),
    (study(2, id="CXR1"), 'train 3: "id" must be unique'),
    (study(2, report="\n"), 'train 3: "report" must be text, not blank'),
    (study(2, image_path=[]), 'train 3: "image_path" must be a list of at least one text'),
    (study(2, image_path="CXR2/0.png"), 'train 3: "image_path" must be a list'),
    (study(2, image_path=["CXR2/9.png"]), 'train 3: "image_path" must be the name of a file'),
    (study(2, image_path=["../annotation.json"]), 'train 3: "image_path" must be a path inside'),
  ],
)
def test_a_malformed_study_is_named_with_its_split_and_number(tmp_path, bad, complaint):
  folder = write(tmp_path, [bad if i == 2 else study(i) for i in range(5)])
  with pytest.raises(UserError, match=rf"^{folder}/annotation\.json: {re.escape(complaint)}"):
    opened("reports", folder)
  assert len(examples(opened("reports", folder, max_bad=1))) == 6


def test_a_missing_split_and_a_missing_file_are_named(tmp_path):
  with pytest.raises(MissingData, match=r"no annotation\.json in"):
    opened("reports", tmp_path)
  write_json(tmp_path / "annotation.json", {"train": [], "test": []})
  with pytest.raises(UserError, match=r'json: expected an object with a list "val"; got'):
    opened("reports", tmp_path)


def test_the_real_reports_are_read_completely(tmp_path):
  path = real("iu_xray_reports") / "annotation.json"
  (tmp_path / path.name).symlink_to(path)
  write_images(tmp_path, ["one.png"])
  (tmp_path / "images").mkdir()
  several = next(s for s in read_json_file(path)["train"] if len(s["image_path"]) == 4)
  for part in read_json_file(path).values():
    for record in part:
      for name in record["image_path"]:
        os.link(tmp_path / "one.png", tmp_path / "images" / name)
  found = examples(sources := opened("reports", tmp_path))
  assert [len(source) for source in sources.values()] == [3062, 382, 382]
  assert len(images(sources)) == len({example.id for example in found}) == 3826
  assert isinstance(sources["train"], FileSource)
  assert sources["train"].load_image(several["id"]).size == (8, 8)
