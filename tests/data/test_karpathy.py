"""Karpathy's files, made of real photos and of wrong entries."""

import json
import re
from pathlib import Path

import pytest

from afspl_jax.data.bad_records import MissingData
from afspl_jax.errors import UserError
from tests.data.folders import examples, images, opened, real, write_images, write_json

KARPATHY = ("train", "restval", "val", "test")


def entry(i: int, **values) -> dict:
  said = {
    "filepath": "val2014",
    "filename": f"COCO_val2014_{i:012d}.jpg",
    "cocoid": i,
    "split": KARPATHY[i % 4],
    "sentences": [{"raw": f"Caption {i}. ", "tokens": ["caption"]}, {"raw": "Or."}],
  }
  return said | values


def write(folder: Path, entries: list) -> Path:
  write_images(folder / "val2014", [f"COCO_val2014_{i:012d}.jpg" for i in range(8)])
  write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": entries})
  return folder


def test_train_is_karpathys_train_and_restval(tmp_path):
  sources = opened("karpathy", write(tmp_path, [entry(i) for i in range(8)]))
  ids = {split: [e.id for e in examples({split: source})] for split, source in sources.items()}
  assert ids == {"train": ["0", "1", "4", "5"], "validation": ["2", "6"], "test": ["3", "7"]}
  assert sources["test"][0].references == ("Caption 3.", "Or.")
  assert sources["test"][0].image == "val2014/COCO_val2014_000000000003.jpg"
  assert sources["test"].load_image(sources["test"][0].image).size == (4, 3)


@pytest.mark.parametrize(
  "bad, complaint",
  [
    (7, "image 3: expected a JSON object"),
    (entry(2, split="held out"), 'image 3: "split" must be one of train, restval, val, test'),
    (entry(2, sentences=[]), 'image 3: "sentences" must be a list of at least one object'),
    (entry(2, sentences=[{"raw": ""}]), 'image 3: "raw" must be text, not blank'),
    (entry(2, sentences=["a"]), "image 3: expected a JSON object; got 'a'"),
    (entry(2, filename="x.jpg"), 'image 3: "filename" must be the name of a file'),
    (entry(2, filepath="../y"), 'image 3: "filename" must be a path inside'),
    (entry(2, cocoid=1), "image 3: \"cocoid\" must be unique; got '1'"),
    (entry(1, cocoid=9), 'image 3: "filename" must be unique'),
  ],
)
def test_a_malformed_entry_is_named_with_its_number(tmp_path, bad, complaint):
  folder = write(tmp_path, [bad if i == 2 else entry(i) for i in range(8)])
  with pytest.raises(UserError, match=rf"^{folder}/dataset_coco\.json: {re.escape(complaint)}"):
    opened("karpathy", folder)
  assert len(examples(opened("karpathy", folder, max_bad=1))) == 7


def test_a_missing_file_raises_missing_data(tmp_path):
  with pytest.raises(MissingData, match=r"no dataset_\*\.json in .*\n  Put"):
    opened("karpathy", tmp_path)


def test_real_photos_without_a_filepath_are_found_in_one_folder(tmp_path):
  """As in dataset_flickr8k.json."""
  shared = real("flickr8k_500")
  names = sorted(path.name for path in (shared / "images").iterdir())[:20]
  (tmp_path / "images").symlink_to(shared / "images")
  entries = [
    {"filename": name, "split": KARPATHY[i % 4], "sentences": [{"raw": "A dog ."}]}
    for i, name in enumerate(names)
  ]
  write_json(tmp_path / "dataset_flickr8k.json", {"images": entries})
  sources = opened("karpathy", tmp_path)
  assert sorted(images(sources)) == names and len(sources["train"]) == 10
  assert sources["train"].load_image(names[0]).mode == "RGB"


def test_real_captions_are_read_unchanged(tmp_path):
  shared = real("coco_cc")
  photos = json.loads((shared / "captions.json").read_text())
  (tmp_path / "images").symlink_to(shared / "images")
  entries = [
    {
      "filepath": "train2014",
      "filename": Path(photo["file_name"]).name,
      "cocoid": photo["image_id"],
      "split": KARPATHY[i % 4],
      "sentences": [{"raw": text} for text in photo["captions"]],
    }
    for i, photo in enumerate(photos)
  ]
  write_json(tmp_path / "dataset_coco.json", {"images": entries})
  found = {example.id: example for example in examples(opened("karpathy", tmp_path))}
  for photo in photos:
    captions = tuple(text.strip() for text in photo["captions"])
    assert found[str(photo["image_id"])].references == captions
