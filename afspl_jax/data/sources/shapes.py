"""The shapes world as a source; written to disk when it is first asked for."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults
from afspl_jax.data.tfds_reader import Builder, TfdsSource, data_dir
from afspl_jax.errors import SettingError
from afspl_jax.types import Example


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, TfdsSource]:
  """Opens splits, drawing the world first where it is not there yet.

  Args:
    splits: their names.
    data: `dir` is where tensorflow-datasets' data sets lie.
    faults: of records; none has any.

  Raises:
    SettingError: the folder cannot be written.
  """
  import tensorflow_datasets as tfds

  builder = _builder(data.dir)
  if not is_drawn(data.dir):
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    print(f"drawing the shapes world into {builder.data_path} (once, some seconds)")
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # speaks of a download
        builder.download_and_prepare()
    except OSError as error:
      if not builder.data_path.exists():  # otherwise another process was quicker
        raise SettingError(
          f"data.dir: expected a folder that can be written; got {data_dir(data.dir)}: {error}."
          " Choose another with --config.data.dir=FOLDER"
        ) from error
    builder = _builder(data.dir)  # what another process drew was not there for the first to read
  return {split: TfdsSource(builder, split, _examples, faults) for split in splits}


def is_drawn(folder: str) -> bool:
  """Whether the world is on disk.

  Args:
    folder: as `data.dir`.
  """
  return _builder(folder).data_path.exists()


def _builder(folder: str) -> Builder:
  from afspl_jax.data.shapes.builder import ShapesWorld

  return ShapesWorld(data_dir=data_dir(folder), file_format="array_record")


def _examples(record: Mapping[str, Any], image: str, where: str) -> list[Example]:
  common = {"image": image, "site": record["site"], "labels": (record["category"],)}
  out = []
  if record["captions"]:
    out.append(Example(id=record["id"], references=tuple(record["captions"]), **common))
  pairs = zip(record["questions"], record["answers"], strict=True)
  for number, (question, answer) in enumerate(pairs):
    out.append(
      Example(id=f"{record['id']}-q{number}", references=(answer,), question=question, **common)
    )
  return out
