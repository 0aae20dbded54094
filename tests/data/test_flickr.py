"""Flickr8k and Flickr30k in all of their forms, and the real photos."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from afspl_jax.data.bad_records import MissingData
from afspl_jax.errors import UserError
from tests.data.folders import examples, images, opened, real, write_images

CAPTIONS = ["Two dogs , one red .", 'A "big" dog|cat #1 runs .']
FORMS = {
  "captions.txt": (
    "image,caption",
    lambda i, j, text: f'{i}.jpg,"{text.replace(chr(34), chr(34) * 2)}"',
  ),
  "Flickr8k.token.txt": ("", lambda i, j, text: f"{i}.jpg#{j}\t{text}"),
  "results_20130124.token": ("", lambda i, j, text: f"{i}.jpg#{j}\t{text}"),
  "results.csv": (
    "image_name| comment_number| comment",
    lambda i, j, text: f"{i}.jpg| {j}| {text}",
  ),
}


def write(folder: Path, form: str, *bad: str, images: str = "Images") -> Path:
  """Thirty images with two captions each; bad lines come third."""
  head, row = FORMS[form]
  rows = [row(i, j, text) for i in range(30) for j, text in enumerate(CAPTIONS)]
  lines = [*([head] if head else []), *rows]
  write_images(folder / images, [f"{i}.jpg" for i in range(30)])
  (folder / form).write_text("\n".join([*lines[:2], *bad, *lines[2:]]) + "\n")
  return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["Images", "flickr30k-images", "."])
def test_every_format_gives_the_same_examples(tmp_path, form, where):
  found = examples(sources := opened("flickr", write(tmp_path, form, images=where)))
  assert sorted(images(sources)) == sorted(f"{i}.jpg" for i in range(30))
  assert {example.references for example in found} == {tuple(CAPTIONS)}


@pytest.mark.parametrize(
  "form, bad",
  [
    ("captions.txt", "3.jpg"),
    ("captions.txt", "3.jpg,"),
    ("captions.txt", "3.jpg,Two dogs , one red ."),
    ("captions.txt", '3.jpg,"Two dogs'),
    ("Flickr8k.token.txt", "3.jpg#0 A dog ."),
    ("Flickr8k.token.txt", "3.jpg\tA dog ."),
    ("results.csv", "3.jpg| 4   A dog ."),  # as in the real one
    ("results.csv", "| 4| A dog ."),
  ],
)
def test_a_malformed_line_is_named_and_does_not_affect_others(tmp_path, form, bad):
  folder = write(tmp_path, form, bad)
  with pytest.raises(UserError, match=rf"{form}:3: expected image"):
    opened("flickr", folder)
  found = examples(opened("flickr", folder, max_bad=1))
  assert sum(len(example.references) for example in found) == 60


def test_a_missing_image_is_named(tmp_path):
  folder = write(tmp_path, "Flickr8k.token.txt", "gone.jpg.1#0\tA dog .")  # as in the real one
  with pytest.raises(UserError, match=r"token\.txt:3: \"image\" must be the name of a file in"):
    opened("flickr", folder)


def test_lists_of_the_data_set_define_the_splits(tmp_path):
  folder = write(tmp_path, "captions.txt")
  for name, numbers in (("Train", range(10)), ("valid", range(10, 15)), ("test", range(15, 17))):
    text = "".join(f"{i}.jpg\n" for i in numbers)
    (folder / f"Flickr_8k.{name}Images.txt").write_text(text)
  sources = opened("flickr", folder)
  assert [len(source) for source in sources.values()] == [10, 5, 2]
  (folder / "Flickr_8k.testImages.txt").write_text("9.jpg\n")
  with pytest.raises(
    UserError, match=r"Images\.txt:\d+: expected an image of \w+ only; got '9\.jpg'"
  ):
    opened("flickr", folder)


def test_several_formats_and_none_are_errors(tmp_path):
  with pytest.raises(MissingData, match=r"no captions\.txt or results\.csv or"):
    opened("flickr", tmp_path)
  write(tmp_path, "captions.txt")
  with pytest.raises(UserError, match=r"expected one of .*; got captions\.txt, results\.csv"):
    opened("flickr", write(tmp_path, "results.csv"))


def test_the_real_photos_are_read_with_five_captions_each():
  folder = real("flickr8k_500")
  found = examples(sources := opened("flickr", folder))
  with (folder / "captions.txt").open() as file:
    expected = Counter(row["image"] for row in csv.DictReader(file))
  assert {example.image: len(example.references) for example in found} == expected
  assert len(found) == 500 and min(len(source) for source in sources.values()) > 40
  assert sources["test"].load_image(sources["test"].images()[0]).mode == "RGB"
