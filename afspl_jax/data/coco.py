"""COCO captions in Karpathy's split, through tensorflow-datasets' `coco_captions`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from afspl_jax.data.tfds_source import TfdsSource, data_dir, prepared
from afspl_jax.types import Example

NAME = "coco_captions/2014"
_SPLITS = {"train": "train+restval", "validation": "val", "test": "test"}
_HOW = """\
  Where there is a network (20 GB to fetch, 60 GB of disk): python -m afspl_jax.data.coco_prepare {}
  Lies it elsewhere, add --config.data.dir=FOLDER"""


def open_split(split: str, folder: str) -> TfdsSource:
  """Opens "train" (Karpathy's train + restval), "validation" or "test".

  Raises:
    MissingData: it has not been prepared.
  """
  builder = prepared(NAME, folder, _HOW.format(data_dir(folder)))
  labels = builder.info.features["objects"]["label"].names
  return TfdsSource(builder, _SPLITS[split], lambda record, i: _examples(record, i, labels))


def _examples(record: Mapping[str, Any], image: str, labels: list[str]) -> list[Example]:
  counts = Counter(labels[int(label)] for label in record["objects"]["label"])
  return [
    Example(
      id=str(record["image/id"]),
      image=image,
      references=tuple(record["captions"]["text"]),
      # The one seen most often first.
      labels=tuple(sorted(counts, key=lambda name: (-counts[name], name))),
    )
  ]
