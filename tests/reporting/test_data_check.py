"""`afspl prepare`: what it tells of good data, and that it finds all that is wrong with bad."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from afspl_jax.cli import main
from tests.data.folders import real, write_images

SITES = ("aachen", "bonn")


@pytest.fixture
def lines(tmp_path) -> list[dict]:
  """Of thirty images at two sites, half of them captioned and half asked about."""
  write_images(tmp_path, [f"{i}.png" for i in range(30)])
  out = []
  for i in range(30):
    said = {"captions": ["a b", "a b c d"]} if i % 2 else {"question": "e f g?", "answers": ["h"]}
    split = ("train", "train", "train", "validation", "test")[i % 5]
    labels = ["even" if i % 4 == 0 else "odd"]
    out.append({"image": f"{i}.png", "site": SITES[i % 2], "split": split, "labels": labels} | said)
  return out


def run(capsys, *argv: object) -> tuple[int, list[str]]:
  """The exit status and what was printed."""
  status = main(["prepare", *map(str, argv)])
  out, err = capsys.readouterr()
  assert "Traceback" not in err
  return status, out.splitlines() if status != 2 else err.splitlines()


def write(folder: Path, lines: list) -> Path:
  texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in lines]
  (folder / "captions.jsonl").write_text("\n".join(texts) + "\n")
  return folder


def words(lines: list[str]) -> list[list[str]]:
  return [re.split(r"\s\s+", line) for line in lines]


def test_good_data_is_counted(tmp_path, lines, capsys):
  status, out = run(capsys, write(tmp_path, lines))
  assert status == 0 and out[-1] == "usable: no errors"
  rows = words(out)
  assert ["train", "18", "18", "9", "9", "27"] in rows and ["test", "6", "6", "3", "3", "9"] in rows
  assert ["aachen", "9", "3", "3"] in rows and ["bonn", "9", "3", "3"] in rows
  assert ["odd", "14", "4", "4"] in rows and ["even", "4", "2", "2"] in rows
  assert ["captions", "3", "4", "4"] in rows and ["questions", "3", "3", "3"] in rows


def test_skipped_blank_answers_are_a_warning(tmp_path, lines, capsys):
  lines[2]["answers"] = ["", "h", "\u200b"]
  status, out = run(capsys, write(tmp_path, lines))
  assert status == 0 and out[-1] == "usable: no errors"
  where = tmp_path / "captions.jsonl"
  assert f"warning: 2 blank answers are skipped, the first of {where}:3" in out


def test_all_errors_are_reported_with_their_place(tmp_path, lines, capsys):
  lines[3]["captions"] = []
  lines[4]["image"] = "gone.png"
  lines[7]["image"] = "../7.png"
  lines[8]["split"] = "later"
  lines[20] = "{"
  (tmp_path / "11.png").write_bytes((tmp_path / "11.png").read_bytes()[:-30])
  (tmp_path / "12.png").write_bytes(b"no image")
  Image.new("L", (4, 3), 0).save(tmp_path / "29.png")  # 0.png's, which is of train
  status, out = run(capsys, write(tmp_path, lines))
  assert status == 1
  path = tmp_path / "captions.jsonl"
  for start in (f"{path}:4: ", f"{path}:5: ", f"{path}:8: ", f"{path}:9: ", f"{path}:21: "):
    assert len([line for line in out if line.startswith(start)]) == 1
  for name in ("11.png", "12.png"):
    assert len([line for line in out if line.startswith(f"{tmp_path / name}: expected an")]) == 1
  assert any(line.startswith("0.png (train of aachen), 29.png (test of bonn): ") for line in out)
  verdict = (
    "8 errors: 1 captions, 1 image missing, 1 image path, 1 split, 1 not JSON,"
    " 2 image undecodable, 1 image in several splits"
  )
  assert out[-1] == verdict


def test_an_image_twice_within_a_split_is_a_warning(tmp_path, lines, capsys):
  for copy, original in (("1.png", "0.png"), ("6.png", "2.png")):
    (tmp_path / copy).write_bytes((tmp_path / original).read_bytes())
  status, out = run(capsys, write(tmp_path, lines))
  assert status == 0
  assert (
    "warning: same image at several sites: 0.png (train of aachen), 1.png (train of bonn)" in out
  )
  assert "warning: 1 images exist under several names" in out


def test_a_split_without_images_is_a_warning_and_no_record_is_an_error(tmp_path, lines, capsys):
  for line in lines:
    line["split"] = "train"
  status, out = run(capsys, write(tmp_path, lines))
  assert status == 0 and "warning: test has no images" in out
  status, out = run(capsys, write(tmp_path, []))
  assert status == 1 and out[-1] == "1 errors: 1 no records"


def test_a_split_without_a_file_is_a_warning(tmp_path, capsys):
  for split in ("val", "test"):
    images = [{"id": i, "file_name": f"{split}{i}.png"} for i in range(4)]
    captions = [{"image_id": i, "caption": "a"} for i in range(4)]
    text = json.dumps({"images": images, "annotations": captions})
    (tmp_path / f"captions_{split}.json").write_text(text)
  write_images(tmp_path, [f"{split}{i}.png" for split in ("test", "val") for i in range(4)])
  status, out = run(capsys, "coco_json", f"--dir={tmp_path}")
  assert status == 0 and "warning: train has no images" in out


def test_a_file_that_cannot_be_read_is_an_error(tmp_path, capsys):
  (tmp_path / "annotation.json").write_text("{")
  status, out = run(capsys, "reports", f"--dir={tmp_path}")
  assert status == 1 and f"{tmp_path / 'annotation.json'}: expected JSON; got" in "\n".join(out)


def test_a_folder_named_like_a_setting_is_read(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data.v1").mkdir()
  (tmp_path / "data.v1" / "annotation.json").write_text("{")
  status, out = run(capsys, "reports", "--dir=data.v1")
  assert status == 1 and out[-1] == "1 errors: 1 unusable file"


def test_mistakes_are_one_message_and_status_2(tmp_path, capsys):
  for argv, complaint in (
    ([tmp_path / "none"], "expected a folder with captions.jsonl, or one of coco_captions, "),
    ([tmp_path], f"no captions.jsonl in {tmp_path}"),
    (["flickr", f"--dir={tmp_path}"], "no captions.txt or results.csv"),
    (["tfds:mnist", f"--dir={tmp_path}"], "data.fields: expected a list"),
    (["tfds", f"--dir={tmp_path}"], "data.source: expected one of"),
  ):
    status, err = run(capsys, *argv)
    assert status == 2 and err[0].startswith("afspl prepare: ") and complaint in "\n".join(err)


def test_real_data_is_usable(capsys):
  status, out = run(capsys, "vqa_rad", f"--dir={real('vqa_rad')}")
  assert status == 0 and out[-1] == "usable: no errors"
  assert ["chest", "77", "13", "17"] in words(out)
