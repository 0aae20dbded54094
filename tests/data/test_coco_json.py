"""COCO's JSON: the real one, and small ones that are wrong."""

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest

from afspl_jax.config.experiment import Data
from afspl_jax.data.annotation_files import files_by_split
from afspl_jax.data.bad_records import BadRecords, MissingData
from afspl_jax.data.sources import open_source
from afspl_jax.data.sources.coco_json import open_splits
from afspl_jax.errors import UserError
from tests.data.folders import SPLITS, examples, images, opened, real, write_images, write_json


def content(numbers=range(40)) -> dict:
  return {
    "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in numbers],
    "annotations": [
      {"id": 10 * i + j, "image_id": i, "caption": f"caption {i} {j} "}
      for j in range(2)
      for i in numbers
    ],
  }


def write(folder: Path, tag: str = "train2017", where: str = "", **changes) -> Path:
  """A file with images 0 to 39 and its images; changes are of entries, by list and number."""
  said = content()
  for name, entry in changes.items():
    kind, _, number = name.rpartition("_")
    said[kind][int(number)] = entry
  write_images(folder / tag, [f"{i:012d}.jpg" for i in range(40)])
  write_json(folder / where / f"captions_{tag}.json", said)
  return folder


def test_one_file_serves_all_splits(tmp_path):
  found = examples(sources := opened("coco_json", write(tmp_path)))
  assert len(images(sources)) == len(found) == 40 and all(len(s) for s in sources.values())
  by_id = {example.id: example for example in found}
  assert by_id["7"].references == ("caption 7 0", "caption 7 1")
  assert by_id["7"].image == "000000000007.jpg"


def test_val_serves_validation_and_test(tmp_path):
  write(tmp_path, "train2017", "annotations")
  sources = opened("coco_json", write(tmp_path, "val2017", "annotations"))
  assert len(sources["train"]) == 40
  assert len(sources["validation"]) + len(sources["test"]) == 40
  assert min(len(source) for source in sources.values()) > 5
  key = sources["test"].images()[0]
  assert sources["test"].load_image(key).size == (4, 3)


def test_a_split_that_no_file_serves_is_named(tmp_path):
  write(tmp_path, "val2017")
  folder = write(tmp_path, "test2017")
  assert list(open_splits(SPLITS, Data(dir=str(folder)), BadRecords())) == ["validation", "test"]
  with pytest.raises(UserError, match=rf"got none of train in {folder}\. .* afspl prepare$"):
    opened("coco_json", folder)
  with pytest.raises(UserError, match="got none of train"):
    open_source(Data(source="coco_json", dir=str(folder)), "train")


def test_ids_are_one_with_and_without_padding_and_point(tmp_path):
  folder = write(
    tmp_path,
    images_3={"id": "000000000003", "file_name": "000000000003.jpg"},
    annotations_3={"image_id": 3.0, "caption": "a caption"},
  )
  by_id = {example.id: example for example in examples(opened("coco_json", folder))}
  assert len(by_id) == 40 and by_id["3"].references == ("a caption", "caption 3 1")


@pytest.mark.parametrize(
  "tag, split",
  [
    ("Train2017", "train"),
    ("VAL", "validation"),
    ("valid", "validation"),
    ("dev", "validation"),
    ("validation_set", "validation"),
    ("testset", "test"),
    ("re-evaluation", "train"),
    ("device_test", "test"),
    ("trainees_val", "validation"),
  ],
)
def test_the_split_of_a_file_is_a_word_of_its_name(tmp_path, tag, split):
  path = write_json(tmp_path / f"captions_{tag}.json", {})
  assert files_by_split(tmp_path, "captions*.json", "") == {split: path}


def test_images_are_found_if_the_folder_spells_their_names_otherwise(tmp_path):
  names = [unicodedata.normalize("NFC", f"ä{i}.jpg") for i in range(40)]
  write_images(tmp_path / "images", [unicodedata.normalize("NFD", name) for name in names])
  said = content() | {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]}
  write_json(tmp_path / "captions.json", said)
  assert len(images(opened("coco_json", tmp_path))) == 40


def test_a_key_twice_in_an_object_is_named_with_its_place(tmp_path):
  path = write(tmp_path) / "captions_train2017.json"
  path.write_text('{"images": [],\n "annotations": [{"image_id": 1, "image_id": 2}]}')
  with pytest.raises(UserError, match=f"{path}: .* key 'image_id' twice in one object: line 2"):
    opened("coco_json", tmp_path)


FAULTS = [
  ({"images_3": 7}, "image 4: expected a JSON object; got 7"),
  ({"images_3": {"id": 3}}, 'image 4: expected the key "file_name"'),
  (
    {"images_3": {"id": 2, "file_name": "x"}},
    "image 4: \"id\" must be unique; got '2'",
  ),
  ({"images_3": {"id": 3, "file_name": "../x.jpg"}}, 'image 4: "file_name" must be a path inside'),
  (
    {"images_3": {"id": 3, "file_name": "x.jpg"}},
    'image 4: "file_name" must be the name of a file',
  ),
  ({"annotations_3": {"image_id": 3}}, 'annotation 4: expected the key "caption"'),
  ({"annotations_3": {"image_id": 3, "caption": " "}}, 'annotation 4: "caption" must be text'),
  (
    {"annotations_3": {"image_id": 99, "caption": "a"}},
    'annotation 4: "image_id" must be the id of',
  ),
]


@pytest.mark.parametrize("changes, complaint", FAULTS)
def test_a_malformed_entry_is_named_with_its_list_and_number(tmp_path, changes, complaint):
  folder = write(tmp_path, **changes)
  with pytest.raises(UserError) as error:
    opened("coco_json", folder)
  assert str(error.value).startswith(f"{folder / 'captions_train2017.json'}: ")
  assert complaint in str(error.value)


def test_captions_of_a_bad_image_are_left_out(tmp_path):
  folder = write(tmp_path, images_3={"id": 3, "file_name": "x.jpg"})
  assert len(examples(opened("coco_json", folder, max_bad=1))) == 39


def test_an_image_without_a_caption_is_malformed(tmp_path):
  said = content()
  said["annotations"] = [entry for entry in said["annotations"] if entry["image_id"] != 3]
  write_json(write(tmp_path) / "captions_train2017.json", said)
  with pytest.raises(UserError, match="image 4: expected a caption"):
    opened("coco_json", tmp_path)


@pytest.mark.parametrize("text", ["[", "[]", '{"images": []}', '{"images": {}, "annotations": []}'])
def test_a_file_of_another_format_is_named(tmp_path, text):
  path = write(tmp_path) / "captions_train2017.json"
  path.write_text(text)
  with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: expected (JSON|an object)"):
    opened("coco_json", tmp_path)


def test_two_files_of_one_split_and_a_missing_one_are_named(tmp_path):
  with pytest.raises(MissingData, match=r"no captions\*\.json in"):
    opened("coco_json", tmp_path)
  write(tmp_path, "train2014")
  write(tmp_path, "train2017", "annotations")
  with pytest.raises(UserError, match=r"train2017\.json and .*train2014|train2014\.json and"):
    opened("coco_json", tmp_path)


def test_the_split_is_a_word_in_the_file_name(tmp_path):
  """There is no test in "latest"."""
  folder = write(write(tmp_path, "latest_val"), "latest_train")
  assert len(open_source(Data(source="coco_json", dir=str(folder)), "train")) == 40


def test_images_that_are_not_found_raise_missing_data(tmp_path):
  write_json(tmp_path / "captions_val2017.json", content())
  with pytest.raises(MissingData, match=r"no images of .*val2017\.json in .*images/val2017\.\n"):
    opened("coco_json", tmp_path)


def test_a_file_name_cannot_lead_out_of_the_folder(tmp_path):
  write_json(tmp_path / "data" / "captions_...json", content())
  write_images(tmp_path, [f"{i:012d}.jpg" for i in range(40)])
  with pytest.raises(MissingData, match="no images of"):
    opened("coco_json", tmp_path / "data")


def test_the_real_captions_of_2017_are_read_completely(tmp_path):
  path = real("coco_val2017_captions") / "captions_val2017.json"
  (tmp_path / path.name).symlink_to(path)
  write_images(tmp_path, ["one.png"])
  (tmp_path / "val2017").mkdir()
  for entry in json.loads(path.read_text())["images"]:
    os.link(tmp_path / "one.png", tmp_path / "val2017" / entry["file_name"])
  found = examples(sources := opened("coco_json", tmp_path))
  assert len(found) == len(images(sources)) == 5000
  assert sum(len(example.references) for example in found) == 25_014
  assert [round(len(sources[split]) / 5000, 1) for split in SPLITS] == [0.7, 0.1, 0.2]
  by_id = {example.id: example for example in found}
  assert "A black Honda motorcycle parked in front of a garage." in by_id["179765"].references
