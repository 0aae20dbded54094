"""The shapes world as a source; it is drawn to disk at the first use."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecords
from afspl_jax.data.tfds_reader import Builder, TfdsSource, tfds_folder
from afspl_jax.errors import SettingError
from afspl_jax.types import Example


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, TfdsSource]:
  """Opens splits; draws the world first if it is not on disk.

  Args:
    splits: names of the splits.
    data: `dir` is the folder of tensorflow-datasets.
    bad_records: not used; no record is bad.

  Raises:
    SettingError: the folder cannot be written.
  """
  import tensorflow_datasets as tfds

  builder = _builder(data.dir)
  if not shapes_exist(data.dir):
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    print(f"drawing the shapes world into {builder.data_path} (once, some seconds)")
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # it speaks of a download
        builder.download_and_prepare()
    except OSError as error:
      if not builder.data_path.exists():  # otherwise another process was quicker
        raise SettingError(
          f"data.dir: expected a folder that can be written; got {tfds_folder(data.dir)}: {error}."
          " Choose another with --config.data.dir=FOLDER"
        ) from error
    builder = _builder(data.dir)  # the first builder does not see what another process drew
  return {split: TfdsSource(builder, split, _examples, bad_records) for split in splits}


def shapes_exist(folder: str) -> bool:
  """Whether the world is on disk.

  Args:
    folder: as `data.dir`.
  """
  return _builder(folder).data_path.exists()


def _builder(folder: str) -> Builder:
  from afspl_jax.data.shapes.builder import ShapesWorld

  return ShapesWorld(data_dir=tfds_folder(folder), file_format="array_record")


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
