"""COCO captions in Karpathy's split, through tensorflow-datasets' `coco_captions`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from afspl_jax.data.tfds_source import MissingData, TfdsSource, data_dir, prepared
from afspl_jax.types import Example

_SPLITS = {"train": "train+restval", "validation": "val", "test": "test"}


def open_split(split: str, folder: str) -> TfdsSource:
  """Opens "train" (Karpathy's train + restval), "validation" or "test".

  Raises:
    MissingData: it has not been prepared.
  """
  builder = prepared("coco_captions", folder)
  if not builder.data_path.exists():
    raise MissingData(
      f"data: coco_captions is not prepared under {data_dir(folder)}.\n"
      "  Where there is a network (40 GB on disk):\n"
      f"    tfds build coco_captions --file_format=array_record --data_dir={data_dir(folder)}\n"
      "  Lies it elsewhere, add --config.data.dir=FOLDER"
    )
  labels = builder.info.features["objects"]["label"].names
  return TfdsSource(builder, _SPLITS[split], lambda record, i: _examples(record, i, labels))


def _examples(record: Mapping[str, Any], image: str, labels: list[str]) -> list[Example]:
  counts = Counter(labels[int(label)] for label in record["objects"]["label"])
  return [
    Example(
      id=str(record["image/id"]),
      image=image,
      references=tuple(record["captions"]["text"]),
      # An image holds several; the one seen most often stands for it.
      category=min(counts, key=lambda name: (-counts[name], name)) if counts else "none",
    )
  ]
