"""The shapes world as a source; written to disk when it is first asked for."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.config import Data
from afspl_jax.data.faults import Faults
from afspl_jax.data.tfds_source import TfdsSource, data_dir
from afspl_jax.errors import UserError
from afspl_jax.types import Example


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, TfdsSource]:
  """Opens splits, drawing the world first where it is not there yet.

  Args:
    splits: their names.
    data: `dir` is where tensorflow-datasets' data sets lie.
    faults: of records; none has any.

  Raises:
    UserError: the folder cannot be written.
  """
  import tensorflow_datasets as tfds

  from afspl_jax.data.shapes.builder import ShapesWorld

  def found() -> ShapesWorld:
    return ShapesWorld(data_dir=data_dir(data.dir), file_format="array_record")

  builder = found()
  if not builder.data_path.exists():
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    print(f"drawing the shapes world into {builder.data_path} (once, some seconds)")
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # speaks of a download
        builder.download_and_prepare()
    except OSError as error:
      if not builder.data_path.exists():  # otherwise another process was quicker
        raise UserError(
          f"data.dir: expected a folder that can be written; got {data_dir(data.dir)}: {error}."
          " Choose another with --config.data.dir=FOLDER"
        ) from error
    builder = found()  # what another process drew was not there for the first to read
  return {split: TfdsSource(builder, split, _examples, faults) for split in splits}


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
