"""VQA-RAD from folders like the real one, and the real one where it lies beside the checkout."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import MissingData
from afspl_jax.data.partition import partition
from afspl_jax.data.sources import open_source, open_sources
from afspl_jax.errors import UserError
from afspl_jax.types import Source
from configs.vqa_rad import get_config
from tests.conftest import SHARED

SPLITS = ("train", "validation", "test")
ORGANS = ("HEAD", "CHEST", "ABD")


def record(number: int, **values) -> dict:
  """One as in the data set; two follow each other on one image."""
  image = number // 2
  defaults = {
    "qid": number,
    "image_name": f"synpic{image}.png",
    "image_organ": ORGANS[image % 3],
    "question": f"Is this number {number}? ",
    "answer": "Yes",
    "answer_type": "CLOSED",
  }
  return defaults | values


def write(folder: Path, records: object, images: int = 40) -> Path:
  (folder / "images").mkdir()
  for i in range(images):
    Image.new("L", (4, 3), i).save(folder / "images" / f"synpic{i}.png")
  text = records if isinstance(records, str) else json.dumps(records)
  (folder / "trainset.json").write_text(text)
  return folder


def vqa_rad(folder: Path, **settings) -> Data:
  return Data(source="vqa_rad", dir=str(folder), **settings)


def opened(folder: Path) -> dict[str, Source]:
  return open_sources(vqa_rad(folder), SPLITS)


def examples(source: Source) -> list:
  return [source[i] for i in range(len(source))]


def test_both_files_are_split_together_and_one_is_enough(tmp_path):
  whole = write(tmp_path, [record(i) for i in range(80)])
  expected = {split: examples(source) for split, source in opened(whole).items()}
  (whole / "trainset.json").write_text(json.dumps([record(i) for i in range(70)]))
  (whole / "testset.json").write_text(json.dumps([record(i) for i in range(70, 80)]))
  assert {split: examples(source) for split, source in opened(whole).items()} == expected
  (whole / "trainset.json").rename(whole / "testset.json")
  assert sum(len(source) for source in opened(whole).values()) == 70
  (whole / "trainset.json").write_text(json.dumps([record(0)]))
  with pytest.raises(UserError, match=r"testset\.json: record 1: \"qid\" must be unique"):
    opened(whole)


def test_every_record_is_in_one_split_and_so_is_every_image(tmp_path):
  sources = opened(write(tmp_path, [record(i) for i in range(80)]))
  ids = [example.id for source in sources.values() for example in examples(source)]
  assert sorted(ids, key=int) == [str(i) for i in range(80)]
  images = [image for source in sources.values() for image in source.images()]
  assert len(images) == len(set(images)) == 40
  for source in sources.values():
    assert isinstance(source, Source)
    assert list(source.images()) == list(dict.fromkeys(e.image for e in examples(source)))


def test_an_images_split_follows_from_its_name_alone(tmp_path):
  (tmp_path / "all").mkdir()
  (tmp_path / "half").mkdir()
  everything = opened(write(tmp_path / "all", [record(i) for i in range(80)]))
  half = opened(write(tmp_path / "half", [record(i, answer="no") for i in range(40)][::-1]))
  for split in SPLITS:
    assert set(half[split].images()) <= set(everything[split].images())


def test_a_record_becomes_a_question_of_its_organs_site(tmp_path):
  odd = {0: {"question": " Where\tis IT?", "answer": "Left\tLung "}, 2: {"answer": 12}}
  records = [record(i, **odd.get(i, {})) for i in range(80)]
  sources = opened(write(tmp_path, records))
  found = {example.id: example for source in sources.values() for example in examples(source)}
  assert (found["0"].question, found["0"].references) == ("where is it?", ("left lung",))
  assert (found["2"].question, found["2"].references) == ("is this number 2?", ("12",))
  assert found["0"].image == "synpic0.png"
  assert [found[i].site for i in "024"] == ["head", "chest", "abdomen"]
  assert [found[i].labels for i in "024"] == [("HEAD",), ("CHEST",), ("ABD",)]


def test_images_are_decoded_as_rgb(tmp_path):
  source = open_source(vqa_rad(write(tmp_path, [record(i) for i in range(80)])), "train")
  for key in source.images():
    image = source.load_image(key)
    assert image.mode == "RGB" and image.size == (4, 3)
    assert np.unique(image).tolist() == [int(re.findall(r"\d+", key)[0])]


@pytest.mark.parametrize("fault", ["text", "cut"])
def test_an_undecodable_image_is_named_when_it_is_loaded(tmp_path, fault):
  folder = write(tmp_path, [record(i) for i in range(80)])
  key = open_source(vqa_rad(folder), "train").images()[0]
  path = folder / "images" / key
  path.write_bytes(b"no image" if fault == "text" else path.read_bytes()[:45])
  source = open_source(vqa_rad(folder), "train")
  with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: expected an image; got"):
    source.load_image(key)


def test_a_fingerprint_follows_from_the_records_and_images_of_its_split(tmp_path):
  records = [record(i) for i in range(80)]
  folder = write(tmp_path, records)
  first = {split: source.fingerprint for split, source in opened(folder).items()}
  assert {split: source.fingerprint for split, source in opened(folder).items()} == first
  assert len(set(first.values())) == 3

  key = open_source(vqa_rad(folder), "train").images()[0]
  Image.new("L", (4, 3), 200).save(folder / "images" / key)
  other = {split: source.fingerprint for split, source in opened(folder).items()}
  assert [other[split] == first[split] for split in SPLITS] == [False, True, True]

  key = open_source(vqa_rad(folder), "test").images()[0]
  number = next(i for i, r in enumerate(records) if r["image_name"] == key)
  records[number]["answer"] = "No"
  (folder / "trainset.json").write_text(json.dumps(records))
  again = {split: source.fingerprint for split, source in opened(folder).items()}
  assert [again[split] == other[split] for split in SPLITS] == [True, True, False]


@pytest.mark.parametrize(
  "values, complaint",
  [
    ({"qid": 4}, "\"qid\" must be unique; got '4' again"),
    ({"qid": "4"}, "\"qid\" must be unique; got '4' again"),
    ({"qid": True}, '"qid" must be text or a number, not blank; got True'),
    ({"question": None}, '"question" must be text, not blank; got None'),
    ({"question": " "}, "\"question\" must be text, not blank; got ' '"),
    ({"answer": ["yes"]}, "\"answer\" must be text or a number, not blank; got ['yes']"),
    ({"image_name": 7}, '"image_name" must be text, not blank; got 7'),
    ({"image_name": "none.png"}, '"image_name" must be the name of a file in '),
    ({"image_name": "../secret.png"}, "got '../secret.png'. Move the file there"),
    ({"image_name": "/etc/hostname"}, "got '/etc/hostname'. Move the file there"),
    ({"image_name": ".."}, "got '..'. Move the file there"),
    ({"image_name": "a\0b"}, '"image_name" must be text, without NUL'),
    ({"image_name": "b" * 5000}, "File name too long"),
    ({"image_organ": "FOOT"}, "\"image_organ\" must be one of HEAD, CHEST, ABD; got 'FOOT'"),
    ({"image_organ": "ABD"}, "earlier records of 'synpic3.png', 'HEAD'; got 'ABD'"),
  ],
)
def test_a_malformed_record_is_named_with_file_and_number(tmp_path, values, complaint):
  folder = write(tmp_path, [record(i, **(values if i == 7 else {})) for i in range(80)])
  Image.new("L", (4, 3)).save(folder / "secret.png")
  with pytest.raises(UserError) as error:
    open_source(vqa_rad(folder), "train")
  message = str(error.value)
  assert message.startswith(f"{folder / 'trainset.json'}: record 8: ")
  assert complaint in message and "\n" not in message


@pytest.mark.parametrize("key", ["qid", "image_name", "image_organ", "question", "answer"])
def test_a_missing_key_is_named(tmp_path, key):
  records = [record(i) for i in range(80)]
  del records[7][key]
  with pytest.raises(UserError, match=rf'record 8: expected the key "{key}"; got'):
    open_source(vqa_rad(write(tmp_path, records)), "test")


@pytest.mark.parametrize(
  "content, complaint",
  [
    ('[{"qid": 1,', "expected JSON; got: "),
    ("[" * 100_000, "expected JSON; got: "),
    ({"qid": 1}, "expected a list of records; got ['qid']"),
    ([["qid", 1]], "record 1: expected a JSON object; got ['qid', 1]"),
  ],
)
def test_a_file_of_another_format_is_named(tmp_path, content, complaint):
  folder = write(tmp_path, content)
  with pytest.raises(UserError, match=re.escape(complaint)) as error:
    open_source(vqa_rad(folder), "train")
  assert str(error.value).startswith(f"{folder / 'trainset.json'}: ")


def test_a_split_without_images_is_named(tmp_path):
  with pytest.raises(UserError, match=r"expected images in every split; got none of test in"):
    open_sources(vqa_rad(write(tmp_path, [])), ("test",))


@pytest.mark.parametrize("present", [(), ("trainset.json",), ("images",)])
def test_the_error_of_missing_data_names_the_folder_and_a_remedy(tmp_path, present):
  for name in present:
    (tmp_path / name).mkdir() if name == "images" else (tmp_path / name).write_text("[]")
  with pytest.raises(MissingData) as error:
    open_source(vqa_rad(tmp_path), "train")
  text = str(error.value)
  assert f"no trainset.json or testset.json, and folder images of VQA-RAD in {tmp_path}.\n" in text
  assert "Lau et al. 2018" in text and "--config.data.dir=FOLDER" in text


def test_the_real_data_set_gives_three_sites_in_every_split():
  folder = SHARED / "vqa_rad"
  if not folder.is_dir():
    pytest.skip(f"{folder} is absent: VQA-RAD lies beside the checkout")
  sources = opened(folder)
  splits = {split: examples(source) for split, source in sources.items()}
  assert {split: len(source.images()) for split, source in sources.items()} == {
    "train": 224,
    "validation": 28,
    "test": 62,
  }
  assert sum(map(len, splits.values())) == 3064
  answers = Counter(e.references for part in splits.values() for e in part)
  assert (answers[("yes",)], answers[("no",)]) == (829, 884)  # in any case
  assert sources["test"].load_image(sources["test"].images()[0]).mode == "RGB"

  clients = partition(splits, get_config().data, seed=0)
  for split, parts in clients.items():
    assert list(parts) == ["abdomen", "chest", "head"]
    sites = defaultdict(set)
    for name, indices in parts.items():
      sites[name] = {splits[split][i].site for i in indices}
    assert sites == {name: {name} for name in parts}
