"""COCO captions in Karpathy's split, through tensorflow-datasets' `coco_captions`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults
from afspl_jax.data.records import texts
from afspl_jax.data.tfds_reader import TfdsSource, data_dir, prepared
from afspl_jax.types import Example

NAME = "coco_captions/2014"
_SPLITS = {"train": "train+restval", "validation": "val", "test": "test"}
_HOW = """\
  Where there is a network (20 GB to fetch, 60 GB of disk): python -m afspl_jax.data.prepare_coco {}
  Lies it elsewhere, add --config.data.dir=FOLDER"""


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, TfdsSource]:
  """Opens splits; train is Karpathy's train and restval.

  Args:
    splits: their names.
    data: `dir` is where tensorflow-datasets' data sets lie.
    faults: what may be left out.

  Raises:
    MissingData: it has not been prepared.
  """
  builder = prepared(NAME, data.dir, _HOW.format(data_dir(data.dir)))
  labels = builder.info.features["objects"]["label"].names

  def examples(record: Mapping[str, Any], image: str, where: str) -> list[Example]:
    counts = Counter(labels[int(label)] for label in record["objects"]["label"])
    return [
      Example(
        id=str(record["image/id"]),
        image=image,
        references=texts(record["captions"], "text", where),
        # The one seen most often first.
        labels=tuple(sorted(counts, key=lambda name: (-counts[name], name))),
      )
    ]

  return {split: TfdsSource(builder, _SPLITS[split], examples, faults) for split in splits}
