"""Any tensorflow-datasets builder as a source, read through array_record without TensorFlow."""

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
from afspl_jax.data.bad_records import Faults, Malformed, MissingData
from afspl_jax.errors import UserError
from afspl_jax.types import Example

# One record without its image, its key, and where it is -> what may be said of it.
Adapter = Callable[[Mapping[str, Any], str, str], list[Example]]
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[\w.]+")
Builder = Any  # tfds.core.DatasetBuilder; its import takes a second


class TfdsSource:
  """One split of a prepared data set.

  Args:
    builder: whose data is prepared in array_record format.
    split: its name there, such as "train" or "train+restval".
    adapt: makes examples of a record; may raise Malformed.
    faults: what may be left out.
    image: the feature that is the image.
    reading: says how `adapt` reads, where that depends on settings.
  """

  def __init__(
    self,
    builder: Builder,
    split: str,
    adapt: Adapter,
    faults: Faults,
    image: str = "image",
    reading: str = "",
  ):
    import tensorflow_datasets as tfds

    raw = {image: tfds.decode.SkipDecoding()}
    self._records = builder.as_data_source(split=split, decoders=raw)
    self._adapt, self._faults, self._image, self._split = adapt, faults, image, split
    self._name = f"{builder.info.full_name}, {split}"
    part = builder.info.splits[split]
    whole = builder.info.splits[split.partition("[")[0]]
    identity = [builder.info.full_name, split, part.num_examples, whole.num_bytes]
    self.pictures = digest([*identity, images.VERSION, image])
    self.fingerprint = digest([*identity, images.VERSION, image, reading])

  @functools.cached_property
  def _examples(self) -> list[Example]:
    """Read when first asked for, as all records must be: opening stays quick."""
    out: list[Example] = []
    for i in range(len(self._records)):
      record, where = self._record(i), self._where(i)
      with self._faults.skipping():
        said = {n: _text(value, where) for n, value in record.items() if n != self._image}
        out += self._adapt(said, self._key(i), where)
    self._faults.tell()
    return out

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def images(self) -> Sequence[str]:
    """Keys of the images: split and position, so that no two splits share any."""
    return [self._key(i) for i in range(len(self._records))]

  def load_image(self, key: str) -> Image.Image:
    """Decodes one image as RGB.

    Raises:
      UserError: it cannot be; names it.
    """
    position = int(key.rpartition("/")[2])
    content = io.BytesIO(self._record(position)[self._image])
    return images.decode(content, self._where(position))

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
    UserError: its features are of other classes than tensorflow-datasets' own.
  """
  import tensorflow_datasets as tfds

  where = data_dir(folder)
  files = tfds.core.read_only_builder.builder_from_files
  try:
    with _own_features(f"{name} under {where}"):
      return files(name, data_dir=where, file_format="array_record")
  except UserError:
    raise
  except tfds.core.registered.DatasetNotFoundError as error:
    fault = f"no {name} is prepared under {where}"
    raise MissingData(f"data: {fault}.\n{how}") from error
  except Exception as error:  # there is no end to what damaged files make it raise
    first = str(error).partition("\n")[0]
    fault = f"expected {name} under {where} in array_record format; got: {first}"
    raise MissingData(f"data: {fault} Move it away, or use another folder.\n{how}") from error


def _text(value: Any, where: str) -> Any:
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      message = f"expected UTF-8; got {value!r:.60}. Write it anew."
      raise Malformed(where, "not UTF-8", message) from error
  if isinstance(value, dict):
    return {name: _text(part, where) for name, part in value.items()}
  return [_text(part, where) for part in value] if hasattr(value, "__len__") else value


@contextlib.contextmanager
def _own_features(where: str) -> Iterator[None]:
  """Has tensorflow-datasets refuse features of other modules than its own, which it would import.

  Their names are looked at where it takes them: a file can hide them from whoever reads it in
  another way, as in JSON within a string of JSON.

  Raises:
    UserError: naming the data set and the class.
  """
  import tensorflow_datasets as tfds

  connector = tfds.features.FeatureConnector
  before, by_name = vars(connector)["cls_from_name"], connector.cls_from_name

  def own(name: str) -> type:
    if not _FEATURE.fullmatch(name):
      raise UserError(
        f"{where}, features.json: expected features of tensorflow-datasets' own; got"
        f" {name!r:.100}, whose module would be run. Use another data set."
      )
    return by_name(name)

  connector.cls_from_name = staticmethod(own)
  try:
    yield
  finally:
    connector.cls_from_name = before
