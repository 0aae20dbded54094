"""Any tensorflow-datasets builder as a source, read through array_record without TensorFlow."""

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from afspl_jax.config import digest
from afspl_jax.errors import UserError
from afspl_jax.types import Example

# One record without its image, and its key -> what may be said of it.
Adapter = Callable[[Mapping[str, Any], str], list[Example]]
Builder = Any  # tfds.core.DatasetBuilder; its import takes a second


class MissingData(UserError):
  """A data set is not where it was looked for; the message says how to get it."""


class TfdsSource:
  """One split of a prepared data set.

  Args:
    builder: whose data is prepared in array_record format.
    split: its name there, such as "train" or "train+restval".
    adapt: makes examples of a record.
  """

  def __init__(self, builder: Builder, split: str, adapt: Adapter):
    import tensorflow_datasets as tfds

    raw = {"image": tfds.decode.SkipDecoding()}
    self._records = builder.as_data_source(split=split, decoders=raw)
    self._adapt, self._split = adapt, split
    part = builder.info.splits[split]
    identity = [builder.info.full_name, split, part.num_examples, part.num_bytes]
    self.fingerprint = digest(identity)

  @functools.cached_property
  def _examples(self) -> list[Example]:
    """Read when first asked for, as all records must be: opening stays quick."""
    out: list[Example] = []
    for i in range(len(self._records)):
      record = {name: _text(value) for name, value in self._records[i].items() if name != "image"}
      out += self._adapt(record, self._key(i))
    return out

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def images(self) -> Sequence[str]:
    """Keys of the images: split and position, so that no two splits share any."""
    return [self._key(i) for i in range(len(self._records))]

  def load_image(self, key: str) -> Image.Image:
    """Decodes one image as RGB."""
    return Image.open(io.BytesIO(self._records[int(key.rpartition("/")[2])]["image"])).convert(
      "RGB"
    )

  def _key(self, position: int) -> str:
    return f"{self._split}/{position}"


def data_dir(folder: str) -> Path:
  """Where data sets lie: `folder`, or what tensorflow-datasets itself would take."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return Path(folder or default).expanduser()


def prepared(name: str, folder: str, how: str) -> Builder:
  """Opens a data set of tensorflow-datasets' own that someone has prepared.

  Reads what was written beside the data, and not tensorflow-datasets' code for it, which for some
  data sets, COCO among them, needs TensorFlow (`tfds.builder` runs it).

  Args:
    name: of the data set, with its config if it has several: "coco_captions/2014".
    folder: where data sets lie; "" for tensorflow-datasets' default.
    how: how to prepare it there; ends the message of MissingData.

  Raises:
    MissingData: it is not there, or not as array_record.
  """
  import tensorflow_datasets as tfds

  where = data_dir(folder)
  files = tfds.core.read_only_builder.builder_from_files
  try:
    return files(name, data_dir=where, file_format="array_record")
  except tfds.core.registered.DatasetNotFoundError as error:
    fault = f"no {name} is prepared under {where}"
    raise MissingData(f"data: {fault}.\n{how}") from error
  except ValueError as error:
    fault = f"expected {name} under {where} in array_record format; got: {error}"
    raise MissingData(f"data: {fault} Move it away, or use another folder.\n{how}") from error


def _text(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {name: _text(part) for name, part in value.items()}
  return [_text(part) for part in value] if hasattr(value, "__len__") else value
