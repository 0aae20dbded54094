"""COCO captions, prepared by the real builder from archives like the real ones, and read back."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import resource

from afspl_jax.config.experiment import Data
from afspl_jax.data import prepare_coco
from afspl_jax.data.bad_records import MissingData
from afspl_jax.data.sources import open_source, open_sources
from afspl_jax.errors import UserError

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco_cc"
KARPATHY = ("train", "restval", "val", "test")
CATEGORIES = {1: "person", 17: "cat", 18: "dog"} | {100 + i: f"other {i}" for i in range(77)}
# Of each photo in turn: a tie, a majority, nothing, a single thing.
THINGS = (["person", "cat"], ["cat", "dog", "dog"], [], ["dog"])
LABELS = (("cat", "person"), ("dog", "cat"), (), ("dog",))


@pytest.fixture(scope="module")
def photos() -> list[dict]:
  if not PHOTOS.is_dir():
    pytest.skip(f"{PHOTOS} is absent: the COCO photos lie beside the checkout")
  # In COCO's own order, two for each of Karpathy's splits.
  chosen = json.loads((PHOTOS / "captions.json").read_text())[:8]
  return sorted(chosen, key=lambda photo: photo["image_id"])


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory) -> str:
  """A folder with coco_captions as the command prepares it, once its downloads are there."""
  folder = tmp_path_factory.mktemp("coco")
  write_archives(photos, folder / "downloads")
  prepare_coco.main([str(folder)])
  return str(folder)


def write_archives(photos: list[dict], downloads: Path) -> None:
  parts: dict[str, list] = {"train2014": [], "val2014": []}
  karpathy = []
  for i, photo in enumerate(photos):
    split = KARPATHY[i // 2]
    part = "train2014" if split == "train" else "val2014"
    name = f"COCO_{part}_{photo['image_id']:012d}.jpg"
    parts[part].append((i, name, photo))
    sentences = [{"sentid": 10 * i + j, "raw": text} for j, text in enumerate(photo["captions"])]
    karpathy.append({"split": split, "filename": name, "sentences": sentences})
  for part, members in parts.items():
    with archive(downloads, f"{part}.zip") as file:
      for _, name, photo in members:
        file.write(PHOTOS / photo["file_name"], f"{part}/{name}")
  with archive(downloads, "annotations_trainval2014.zip") as file:
    for part, members in parts.items():
      file.writestr(f"annotations/instances_{part}.json", json.dumps(instances(members)))
  with archive(downloads, "caption_datasets.zip") as file:
    file.writestr("dataset_coco.json", json.dumps({"images": karpathy}))


def archive(downloads: Path, name: str) -> zipfile.ZipFile:
  """Where the download manager finds what it has fetched before, by the known checksum."""
  infos = prepare_coco.CocoCaptions.url_infos
  (url,) = [url for url in infos if url.endswith(f"/{name}")]
  path = downloads / resource.get_dl_fname(url, infos[url].checksum)
  path.parent.mkdir(exist_ok=True)
  resource.write_info_file(url, path, "coco_captions", name, infos[url])
  return zipfile.ZipFile(path, "w")


def instances(members: list) -> dict:
  ids = {name: number for number, name in CATEGORIES.items()}
  images = [
    {"id": p["image_id"], "file_name": name, "width": p["width"], "height": p["height"]}
    for _, name, p in members
  ]
  boxes = [
    {
      "id": 100 * i + k,
      "image_id": photo["image_id"],
      "category_id": ids[thing],
      "bbox": [1.0, 2.0, 30.0, 40.0],
      "area": 1200.0,
      "iscrowd": 0,
    }
    for i, _, photo in members
    for k, thing in enumerate(THINGS[i % 4])
  ]
  categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
  return {"images": images, "annotations": boxes, "categories": categories}


@pytest.mark.parametrize(
  "split, chosen", [("train", [0, 1, 2, 3]), ("validation", [4, 5]), ("test", [6, 7])]
)
def test_karpathys_splits_are_read_with_captions_and_categories(prepared, photos, split, chosen):
  source = open_source(Data(source="coco_captions", dir=prepared), split)
  found = {source[i].id: source[i] for i in range(len(source))}
  assert set(found) == {str(photos[i]["image_id"]) for i in chosen}
  for i in chosen:
    example = found[str(photos[i]["image_id"])]
    assert (
      example.references == tuple(text.strip() for text in photos[i]["captions"])
      and len(example.references) == 5
    )
    assert example.labels == LABELS[i % 4]
    assert example.question == ""
    photo = Image.open(PHOTOS / photos[i]["file_name"]).convert("RGB")
    np.testing.assert_array_equal(source.load_image(example.image), photo)


def test_the_generic_reader_gives_the_same_examples(prepared):
  fields = "image=image,captions=captions/text,labels=objects/label,id=image/id"
  general = Data(source="tfds:coco_captions/2014", dir=prepared, fields=fields)
  own = Data(source="coco_captions", dir=prepared)
  for split in ("validation", "test"):
    found, expected = open_source(general, split), open_source(own, split)
    assert len(found) == len(expected) > 0
    for i in range(len(found)):
      assert found[i].id == expected[i].id and found[i].references == expected[i].references
      assert set(found[i].labels) == set(expected[i].labels)
      assert found[i].labels[:1] == expected[i].labels[:1] or len(expected[i].labels) > 1
      np.testing.assert_array_equal(found.load_image(str(i)), expected.load_image(str(i)))


def test_splits_have_different_fingerprints(prepared):
  splits = ("train", "validation")
  sources = open_sources(Data(source="coco_captions", dir=prepared), splits).values()
  assert len({source.fingerprint for source in sources}) == 2


def test_the_prepared_data_set_equals_that_of_tensorflow_datasets(prepared):
  builder = tfds.builder("coco_captions/2014:1.1.0", data_dir=prepared, file_format="array_record")
  assert builder.info.full_name == "coco_captions/2014/1.1.0"
  features = builder.info.features
  assert set(features) == {"image", "image/filename", "image/id", "objects", "captions"}
  assert features["objects"]["label"].names == list(CATEGORIES.values())


def test_preparing_again_does_nothing(prepared, capsys):
  before = sorted(
    (path, path.stat().st_mtime_ns) for path in Path(prepared).rglob("*.array_record*")
  )
  prepare_coco.main([prepared])
  after = sorted(
    (path, path.stat().st_mtime_ns) for path in Path(prepared).rglob("*.array_record*")
  )
  assert before == after != []
  assert f"prepared under {prepared}" in capsys.readouterr().out


def test_the_error_of_missing_data_names_the_folder_and_a_remedy(tmp_path):
  with pytest.raises(MissingData) as error:
    open_source(Data(source="coco_captions", dir=str(tmp_path)), "train")
  assert isinstance(error.value, UserError)
  text = str(error.value)
  assert f"no coco_captions/2014 is prepared under {tmp_path}" in text
  assert f"python -m afspl_jax.data.prepare_coco {tmp_path}" in text
  assert "--config.data.dir=FOLDER" in text
  assert not list(tmp_path.iterdir())  # looking leaves nothing behind


def test_data_in_another_format_has_its_own_error(prepared, tmp_path):
  info = Path(prepared) / "coco_captions" / "2014" / "1.1.0"
  copy = tmp_path / info.relative_to(prepared)
  copy.mkdir(parents=True)
  for name in ("features.json", "dataset_info.json"):
    text = (info / name).read_text().replace('"array_record"', '"tfrecord"')
    (copy / name).write_text(text)
  with pytest.raises(MissingData, match=r"in array_record format; got: .*tfrecord") as error:
    open_source(Data(source="coco_captions", dir=str(tmp_path)), "train")
  assert "prepare_coco" in str(error.value)
