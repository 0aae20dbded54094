"""Reads any data set of tensorflow-datasets from array_record files, without TensorFlow."""

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from afspl_jax.config.nested_values import digest
from afspl_jax.data import images
from afspl_jax.data.bad_records import BadRecord, BadRecords, MissingData
from afspl_jax.errors import UserError
from afspl_jax.types import Example

# Makes the examples of a record: (record without its image, the image's key, position in the file).
Adapter = Callable[[Mapping[str, Any], str, str], list[Example]]
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[\w.]+")
Builder = Any  # tfds.core.DatasetBuilder; its import takes a second


class TfdsSource:
  """One split of a prepared data set.

  Args:
    builder: of a data set that is prepared in array_record format.
    split: its name there, such as "train" or "train+restval".
    adapt: makes the examples of a record; may raise BadRecord.
    bad_records: collects the records that are left out.
    image: name of the feature with the image.
    reading: the settings that `adapt` depends on, for the fingerprint.
  """

  def __init__(
    self,
    builder: Builder,
    split: str,
    adapt: Adapter,
    bad_records: BadRecords,
    image: str = "image",
    reading: str = "",
  ):
    import tensorflow_datasets as tfds

    raw = {image: tfds.decode.SkipDecoding()}
    self._records = builder.as_data_source(split=split, decoders=raw)
    self._adapt, self._bad_records, self._image, self._split = adapt, bad_records, image, split
    self._name = f"{builder.info.full_name}, {split}"
    part = builder.info.splits[split]
    whole = builder.info.splits[split.partition("[")[0]]
    identity = [builder.info.full_name, split, part.num_examples, whole.num_bytes]
    self.images_fingerprint = digest([*identity, images.VERSION, image])
    self.fingerprint = digest([*identity, images.VERSION, image, reading])

  @functools.cached_property
  def _examples(self) -> list[Example]:
    """Reads all records at the first use, so opening a source is quick."""
    out: list[Example] = []
    for i in range(len(self._records)):
      record, where = self._record(i), self._where(i)
      with self._bad_records.skipping():
        values = {n: _text(value, where) for n, value in record.items() if n != self._image}
        out += self._adapt(values, self._key(i), where)
    self._bad_records.report()
    return out

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def images(self) -> Sequence[str]:
    """Keys of the images: split and position, so no two splits have a key in common."""
    return [self._key(i) for i in range(len(self._records))]

  def load_image(self, key: str) -> Image.Image:
    """Decodes one image as RGB.

    Raises:
      UserError: it cannot be decoded; the message names it.
    """
    position = int(key.rpartition("/")[2])
    content = io.BytesIO(self._record(position)[self._image])
    return images.decode_image(content, self._where(position))

  def _record(self, i: int) -> Mapping[str, Any]:
    try:
      return self._records[i]
    except (RuntimeError, ValueError, LookupError, OSError) as error:  # array_record's, and tfds'
      raise UserError(
        f"{self._where(i)}: expected a file that can be read; got:"
        f" {' '.join(str(error).split())}. Prepare the data set again."
      ) from error

  def _where(self, i: int) -> str:
    return f"{self._name}: record {i + 1}"

  def _key(self, position: int) -> str:
    return f"{self._split}/{position}"


def tfds_folder(folder: str) -> Path:
  """The folder of the data sets: `folder`, or the default of tensorflow-datasets."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return Path(folder or default).expanduser()


def open_prepared(name: str, folder: str, how: str) -> Builder:
  """Opens a prepared data set of tensorflow-datasets.

  Reads the metadata next to the data instead of running tensorflow-datasets' code for the data set
  (as `tfds.builder` does), which for some data sets, such as COCO, needs TensorFlow.

  Args:
    name: of the data set, with its config if it has several: "coco_captions/2014".
    folder: of the data sets; "" for tensorflow-datasets' default.
    how: how to prepare it there; ends the message of MissingData.

  Raises:
    MissingData: it was not found, or is not in array_record format.
    UserError: a feature has a class from outside tensorflow-datasets.
  """
  import tensorflow_datasets as tfds

  where = tfds_folder(folder)
  files = tfds.core.read_only_builder.builder_from_files
  try:
    with _own_features(f"{name} under {where}"):
      return files(name, data_dir=where, file_format="array_record")
  except UserError:
    raise
  except tfds.core.registered.DatasetNotFoundError as error:
    raise MissingData(f"data: no {name} is prepared under {where}.\n{how}") from error
  except Exception as error:  # damaged files make it raise any error
    first = str(error).partition("\n")[0]
    problem = f"expected {name} under {where} in array_record format; got: {first}"
    raise MissingData(f"data: {problem} Move it away, or use another folder.\n{how}") from error


def _text(value: Any, where: str) -> Any:
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      message = f"expected UTF-8; got {value!r:.60}. Prepare the data set again."
      raise BadRecord(where, "not UTF-8", message) from error
  if isinstance(value, dict):
    return {name: _text(part, where) for name, part in value.items()}
  return [_text(part, where) for part in value] if hasattr(value, "__len__") else value


@contextlib.contextmanager
def _own_features(where: str) -> Iterator[None]:
  """Makes tensorflow-datasets reject features of other modules, which it would import and run.

  The check is in the function that receives the class names: a file can hide them from another
  reader, for instance in JSON inside a string of JSON.

  Raises:
    UserError: there is such a feature; the message names the data set and the class.
  """
  import tensorflow_datasets as tfds

  connector = tfds.features.FeatureConnector
  before, by_name = vars(connector)["cls_from_name"], connector.cls_from_name

  def own(name: str) -> type:
    if not _FEATURE.fullmatch(name):
      raise UserError(
        f"{where}, features.json: expected only features of tensorflow-datasets; got"
        f" {name!r:.100}, whose module would be run. Use another data set."
      )
    return by_name(name)

  connector.cls_from_name = staticmethod(own)
  try:
    yield
  finally:
    connector.cls_from_name = before
