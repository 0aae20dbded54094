"""COCO captions in Karpathy's split, through tensorflow-datasets' `coco_captions`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.data.records import text_list
from afspl_jax.data.tfds_reader import TfdsSource, open_prepared, tfds_folder
from afspl_jax.types import Example

NAME = "coco_captions/2014"
_SPLITS = {"train": "train+restval", "validation": "val", "test": "test"}
_HOW = """\
  Where there is a network (20 GB to fetch, 60 GB of disk): python -m afspl_jax.data.prepare_coco {}
  If it is elsewhere, add --config.data.dir=FOLDER"""


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, TfdsSource]:
  """Opens splits; train is Karpathy's train and restval.

  Args:
    splits: names of the splits.
    data: `dir` is the folder of tensorflow-datasets.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: the data set has not been prepared.
  """
  builder = open_prepared(NAME, data.dir, _HOW.format(tfds_folder(data.dir)))
  labels = builder.info.features["objects"]["label"].names

  def examples(record: Mapping[str, Any], image: str, where: str) -> list[Example]:
    counts = Counter(labels[int(label)] for label in record["objects"]["label"])
    return [
      Example(
        id=str(record["image/id"]),
        image=image,
        references=text_list(record["captions"], "text", where),
        # The most frequent category first.
        labels=tuple(sorted(counts, key=lambda name: (-counts[name], name))),
      )
    ]

  return {split: TfdsSource(builder, _SPLITS[split], examples, bad_records) for split in splits}
