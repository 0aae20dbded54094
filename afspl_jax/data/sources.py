"""The sources by name; a new one is a module with `open_split(split, folder)` and a line here."""

from importlib import import_module

from afspl_jax.config import choice
from afspl_jax.types import Source

SOURCES = {
  "shapes": "afspl_jax.data.shapes.source",
  "coco_captions": "afspl_jax.data.coco",
  "vqa_rad": "afspl_jax.data.vqa_rad",
}


def open_source(name: str, split: str, folder: str) -> Source:
  """Opens one split.

  Args:
    name: one of SOURCES.
    split: "train", "validation" or "test".
    folder: where data sets lie; "" for tensorflow-datasets' default.

  Raises:
    UserError: an unknown source, or one whose data is not there.
  """
  choice("data.source", name, tuple(SOURCES))
  return import_module(SOURCES[name]).open_split(split, folder)
