"""Paths in a folder of one's own: out of it, over links, in other spellings, and to a pipe."""

import os
import unicodedata
from pathlib import Path

import pytest

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.data.sources import open_source
from afspl_jax.data.sources.folder import open_splits
from afspl_jax.errors import UserError
from tests.data.folders import SPLITS, examples, images, opened, write_images
from tests.data.test_folder import line, write

PATHS = ["/etc/hostname", "../x.png", "scans/../../x.png", "C:\\x.png", "c:x.png", "scans\\1.png"]
PATHS += ["\\\\host\\x.png", "..", "out.png", "far/x.png"]


def opened_splits(folder: Path):
  return open_splits(SPLITS, Data(source="folder", dir=str(folder)), BadRecords())


@pytest.mark.parametrize("name", PATHS)
def test_paths_out_of_the_folder_are_rejected(tmp_path, name):
  write_images(tmp_path, ["x.png"])
  folder = write(tmp_path / "data", [line(0), line(1, image=name)])
  (folder / "out.png").symlink_to(tmp_path / "x.png")
  (folder / "far").symlink_to(tmp_path)
  with pytest.raises(UserError, match=rf'jsonl:2: "image" must be a path inside {folder}'):
    opened("folder", folder)


def test_links_within_the_folder_are_followed(tmp_path):
  folder = write(tmp_path, [line(0, image="here.png", split="train")])
  (folder / "here.png").symlink_to(folder / "scans" / "3.png")
  (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(folder)
  source = open_source(Data(source="folder", dir=f"{folder}-link"), "train")
  assert source.load_image("here.png").getpixel((0, 0)) == (3, 3, 3)


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_in_the_spelling_of_the_folder(tmp_path, form, other):
  there, written = (unicodedata.normalize(f, "Übersicht/größe.png") for f in (form, other))
  mixed = unicodedata.normalize(form, "Übersicht/") + unicodedata.normalize(other, "größe.png")
  write_images(tmp_path, [there])
  lines = [line(i, image=name, split="train") for i, name in enumerate((there, written, mixed))]
  found = examples(sources := opened_splits(write(tmp_path, lines)))
  assert [example.image for example in found] == [there] * 3
  assert images(sources) == [there] and sources["train"].load_image(there).size == (4, 3)


def test_two_files_whose_names_differ_in_spelling_only_stay_two(tmp_path):
  names = [unicodedata.normalize(form, "größe.png") for form in ("NFC", "NFD")]
  write_images(tmp_path, names)
  lines = [line(i, image=name, split="train") for i, name in enumerate(names)]
  assert images(opened_splits(write(tmp_path, lines))) == names


def test_a_pipe_is_rejected(tmp_path):
  folder = write(tmp_path, [line(0, image="pipe")])
  os.mkfifo(folder / "pipe")
  with pytest.raises(UserError, match="got 'pipe', which is not a file"):
    opened("folder", folder)
