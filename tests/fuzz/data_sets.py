"""Readers of data sets: annotation files, images, manifests and cached features."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afspl_jax.config.experiment import Data
from afspl_jax.data import images, manifest
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.data.feature_cache import FeatureCache
from afspl_jax.data.sources import open_sources, open_splits
from afspl_jax.types import Example
from tests.data.folders import write_images, write_json
from tests.fuzz.target import Target

SPLITS = ("train", "validation", "test")
NAMES = [f"{i}.png" for i in range(8)]
_OUTSIDE = (255, 0, 255)  # a colour that no image of a data set has


def source(kind: str, file: str, make: Callable[[Path], Any]) -> Target:
  """A data set: looked through as `afspl prepare` does, and opened as a run does."""

  def write(folder: Path) -> None:
    (folder / "outside").mkdir()
    Image.new("RGB", (4, 3), _OUTSIDE).save(folder / "outside" / "0.png")
    Image.new("RGB", (4, 3), _OUTSIDE).save(folder / "x.png")
    inside = folder / "data"
    for place in (inside, inside / "images", inside / "train2014"):
      write_images(place, NAMES)
      (place / "linked").symlink_to(folder / "outside")
    make(inside)

  def read(folder: Path) -> None:
    data = Data(source=kind, dir=str(folder / "data"))
    for split in open_splits(SPLITS, data, BadRecords(None)).values():
      assert all(isinstance(split[i], Example) for i in range(len(split)))
      for key in split.images():
        seen = np.asarray(split.load_image(key))
        assert not (seen == _OUTSIDE).all(axis=-1).any(), f"{key!r} is outside"
    open_sources(data, SPLITS)

  return Target(write, f"data/{file}", read, cost=0.01)


def _captions(folder: Path) -> None:
  lines = [
    '{"image": "0.png", "captions": ["a dog"], "site": "x", "labels": ["a"], "split": "train"}',
    '{"image": "1.png", "question": "what ?", "answers": ["yes"], "site": "y", "split": "val"}',
    '{"image": "images/2.png", "captions": ["a", "b"], "site": "y", "split": "test", "id": 7}',
  ]
  (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def _coco(folder: Path) -> None:
  said = [{"image_id": i, "caption": f"a dog {i}"} for i in range(8)]
  named = [{"id": i, "file_name": name} for i, name in enumerate(NAMES)]
  write_json(folder / "captions_train2014.json", {"images": named, "annotations": said})


def _karpathy(folder: Path) -> None:
  split = ["train", "restval", "val", "test"]
  entries = [
    {"filename": name, "filepath": "train2014", "split": split[i % 4], "cocoid": i}
    | {"sentences": [{"raw": "a dog"}, {"raw": "a cat"}]}
    for i, name in enumerate(NAMES)
  ]
  write_json(folder / "dataset_coco.json", {"images": entries})


def _flickr(name: str, line: str) -> Callable[[Path], None]:
  def make(folder: Path) -> None:
    head = "image,caption\n" if name == "captions.txt" else ""
    (folder / name).write_text(head + "".join(line.format(image) for image in NAMES))
    for i, part in enumerate(("train", "dev", "test")):
      (folder / f"Flickr_8k.{part}Images.txt").write_text("\n".join(NAMES[i::3]) + "\n")

  return make


def _reports(folder: Path) -> None:
  def study(i: int) -> dict[str, Any]:
    return {"id": f"s{i}", "report": "none .", "image_path": [f"{2 * i}.png", f"{2 * i + 1}.png"]}

  parts = {"train": [study(0), study(1)], "val": [study(2)], "test": [study(3)]}
  write_json(folder / "annotation.json", parts)


def _rad(folder: Path) -> None:
  record = {"image_organ": "HEAD", "question": "what ?", "answer": "Yes"}
  write_json(
    folder / "trainset.json",
    [record | {"qid": i, "image_name": name} for i, name in enumerate(NAMES)],
  )


def _vqa(folder: Path) -> None:
  asked = [{"question_id": i, "image_id": i, "question": "what ?"} for i in range(8)]
  answers = [{"answer": "yes"}, {"answer": "no"}]
  said = [{"question_id": i, "answer_type": "other", "answers": answers} for i in range(8)]
  for name, key, entries in (
    ("questions", "questions", asked),
    ("annotations", "annotations", said),
  ):
    write_json(folder / f"train2014_{name}.json", {"data_subtype": "train2014", key: entries})


def picture(form: str, mode: str, **settings: Any) -> Target:
  """An image file of a format."""

  def make(folder: Path) -> None:
    drawn = Image.effect_noise((24, 16), 60).convert(mode)
    drawn.save(folder / "image", form, **settings)

  def read(folder: Path) -> None:
    for file in (folder / "image", io.BytesIO((folder / "image").read_bytes())):
      seen = images.decode_image(file, "image")
      assert seen.mode == "RGB"

  return Target(make, "image", read)


def _manifest(folder: Path) -> None:
  clients = {"a": {"train": ["1", "2"], "test": ["5"]}, "b": {"train": ["3", "4"], "test": []}}
  write_json(folder / "partition.json", {"clients": clients, "hash": manifest.digest(clients)})


def _read_manifest(folder: Path) -> None:
  file = folder / "partition.json"
  splits = {
    "train": [Example(id=str(i), image=str(i), references=("a",)) for i in range(1, 5)],
    "test": [Example(id="5", image="5", references=("a",))],
  }
  manifest.comparable_partition(f"manifest:{file}")
  manifest.assign_by_manifest(manifest.read_manifest(file), splits, 2, file)


_FLOAT, _SHAPES = np.dtype(np.float32), {"a": (6, 3)}
_ROWS = np.arange(18, dtype=np.float32).reshape(6, 3)


def _cached(folder: Path) -> None:
  cache = FeatureCache(folder / "cache", _FLOAT)
  cache.get(["x"], _SHAPES, lambda start: ({"a": _ROWS[i : i + 2]} for i in range(start, 6, 2)))
  (made,) = (folder / "cache").iterdir()
  made.rename(folder / "made")
  (folder / "cache" / made.name).symlink_to(folder / "made")


def _read_cached(folder: Path) -> None:
  def nothing(start: int) -> Any:
    raise AssertionError("it is there")

  found = FeatureCache(folder / "cache", _FLOAT).get(["x"], _SHAPES, nothing)
  assert found["a"].shape == (6, 3) and found["a"].dtype == _FLOAT
  assert found["a"].sum() is not None


def _begun(folder: Path) -> None:
  """A cache whose making was cut short after two parts."""
  _cached(folder)
  (folder / "parts.txt").write_bytes((folder / "made" / "parts.txt").read_bytes())


def _go_on(folder: Path) -> None:
  (link,) = (link for link in (folder / "cache").iterdir())
  name = link.name.removesuffix(".part")
  whole, begun = folder / "cache" / name, folder / "cache" / f"{name}.part"
  for place in (whole, begun):
    if place.is_symlink():
      place.unlink()
    elif place.exists():
      for file in place.iterdir():
        file.unlink()
      place.rmdir()
  begun.mkdir()
  (begun / "a.npy").write_bytes((folder / "made" / "a.npy").read_bytes())
  (begun / "parts.txt").write_bytes((folder / "parts.txt").read_bytes())
  made = FeatureCache(folder / "cache", _FLOAT).get(
    ["x"], _SHAPES, lambda start: ({"a": _ROWS[i : i + 1]} for i in range(start, 6))
  )
  np.testing.assert_array_equal(made["a"], _ROWS)  # whatever was said of what was there


TARGETS = {
  "folder": source("folder", "captions.jsonl", _captions),
  "coco_json": source("coco_json", "captions_train2014.json", _coco),
  "karpathy": source("karpathy", "dataset_coco.json", _karpathy),
  "flickr": source("flickr", "captions.txt", _flickr("captions.txt", "{},a dog\n")),
  "flickr_token": source("flickr", "x.token", _flickr("x.token", "{}#0\ta dog\n")),
  "flickr_bars": source("flickr", "results.csv", _flickr("results.csv", "{}| 0| a dog\n")),
  "flickr_list": source(
    "flickr", "Flickr_8k.trainImages.txt", _flickr("captions.txt", "{},a dog\n")
  ),
  "reports": source("reports", "annotation.json", _reports),
  "vqa_rad": source("vqa_rad", "trainset.json", _rad),
  "vqa_questions": source("vqa_v2", "train2014_questions.json", _vqa),
  "vqa_answers": source("vqa_v2", "train2014_annotations.json", _vqa),
  "manifest": Target(_manifest, "partition.json", _read_manifest),
  "features": Target(_cached, "made/a.npy", _read_cached),
  "features_begun": Target(_begun, "parts.txt", _go_on, cost=0.003),
  "png": picture("PNG", "RGBA"),
  "png_deep": picture("PNG", "I;16"),
  "png_palette": picture("PNG", "P", transparency=0),
  "jpeg": picture("JPEG", "RGB"),
  "gif": picture("GIF", "P"),
  "tiff": picture("TIFF", "RGB", compression="tiff_lzw"),
  "tiff_float": picture("TIFF", "F"),
  "webp": picture("WEBP", "RGB"),
  "bmp": picture("BMP", "RGB"),
  "ico": picture("ICO", "RGBA"),
  "jpeg_2000": picture("JPEG2000", "RGB"),
  "ppm": picture("PPM", "RGB"),
  "tga": picture("TGA", "RGB"),
  "icns": picture("ICNS", "RGB"),
  "eps": picture("EPS", "RGB"),
}
