"""Writes the metrics of a run as TensorBoard events, during the run.

The run's JSON-lines files are the reference: a process that resumes a run writes all events again
from them, so that a round that was repeated after a crash appears once.
"""

import contextlib
import importlib.util
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from afspl_jax.errors import UserError
from afspl_jax.storage.run_lines import METRICS, read_lines
from afspl_jax.types import Source

_EXAMPLES = 4  # of the validation split that are shown with their predictions
_SIDE, _LINES, _LETTERS = (
  192,
  8,
  30,
)  # pixels of an image; lines of text below it; letters in a line
_FILES = "events.out.tfevents.*"
_NOT_SCALARS = ("round", "split")


class TensorBoard:
  """Writes the lines of metrics.jsonl, and some generated texts, as events.

  Without its library (the extra "tensorboard") it writes nothing.

  Args:
    run: the run folder.
  """

  def __init__(self, run: Path):
    self._run = run
    self._installed = importlib.util.find_spec("tensorboardX") is not None
    self._writer: Any = None
    self._written = 0  # lines
    self._images: dict[str, Image.Image | None] = {}  # of the shown examples, by id

  def update(self, validation: Source) -> None:
    """Writes events for the new lines of metrics.jsonl.

    Args:
      validation: the validation split, for its images.

    Raises:
      UserError: the events cannot be written, or metrics.jsonl is damaged.
    """
    folder = self._run / "tensorboard"
    if not self._installed or (self._writer is None and self._is_current(folder)):
      return
    lines = read_lines(self._run / METRICS)
    try:
      if self._writer is None:
        self._begin(folder)
      for line in lines[self._written :]:
        self._add(line, validation)
      self._writer.flush()
    except OSError as error:
      with contextlib.suppress(OSError):  # closing writes the rest, and fails in the same way
        self.close()
      for file in folder.glob(_FILES):  # otherwise incomplete files would look complete
        file.unlink()
      raise UserError(
        f"{folder}: expected to write to it; got: {error}. Free some disk space and start"
        " the same command again to resume"
      ) from error
    self._written = len(lines)

  def close(self) -> None:
    """Closes the event file."""
    writer, self._writer = self._writer, None
    if writer is not None:
      writer.close()

  def __enter__(self) -> "TensorBoard":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _is_current(self, folder: Path) -> bool:
    """Whether an earlier process wrote all events: then a finished run is not changed."""
    written = [file.stat().st_mtime_ns for file in folder.glob(_FILES)]
    return bool(written) and max(written) >= (self._run / METRICS).stat().st_mtime_ns

  def _begin(self, folder: Path) -> None:
    """Opens a new event file, and removes those of earlier processes."""
    # Not SummaryWriter: its thread ignores a full disk, and then blocks the writer.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter

    self._written = 0
    folder.mkdir(exist_ok=True)
    old = sorted(folder.glob(_FILES))
    now = time.time()
    self._writer = RecordWriter(str(folder / f"events.out.tfevents.{now:.6f}.afspl"))
    self._put(Event(wall_time=now, file_version="brain.Event:2"))
    # A running TensorBoard then drops the events of the removed files.
    self._put(Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)))
    for file in old:
      file.unlink()

  def _add(self, line: dict[str, Any], validation: Source) -> None:
    from tensorboardX import summary

    for name, value in line.items():
      if name not in _NOT_SCALARS and value is not None:
        self._event(line["round"], summary.scalar(f"{line['split']}/{name}", value))
    if line["split"] == "val":
      shown = self._texts(line["round"], validation)
      if shown is not None:
        tag = "val/texts"
        self._event(line["round"], summary.image(tag, shown, dataformats="HWC"))

  def _event(self, round: int, summary: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event

    self._put(Event(wall_time=time.time(), step=round, summary=summary))

  def _put(self, event: Any) -> None:
    self._writer.write(event.SerializeToString())

  def _texts(self, round: int, validation: Source) -> np.ndarray | None:
    """Some examples side by side, each above its predicted text."""
    lines = read_lines(self._run / "predictions" / f"round_{round:04d}.jsonl")
    chosen = lines[:: max(1, len(lines) // _EXAMPLES)][:_EXAMPLES]
    if not self._images:
      self._images = _load({line["id"] for line in chosen}, validation)
    panels = [(image, line) for line in chosen if (image := self._images.get(line["id"]))]
    if not panels:
      return None
    canvas = Image.new("RGB", (len(panels) * (_SIDE + 8), _SIDE + 8 + 12 * _LINES), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, line) in enumerate(panels):
      left = i * (_SIDE + 8) + 4
      canvas.paste(image, (left, 4))
      text = f"{line['question']} - " if line.get("question") else ""
      wrapped = textwrap.wrap(text + line["prediction"], _LETTERS, max_lines=_LINES)
      draw.multiline_text((left, _SIDE + 8), "\n".join(wrapped), fill="black", spacing=1)
    return np.asarray(canvas)


def _load(ids: set[str], source: Source) -> dict[str, Image.Image | None]:
  """Thumbnails of examples; None if an image cannot be read."""
  found = {}
  for example in (source[i] for i in range(len(source))):
    if example.id in ids:
      try:
        small = source.load_image(example.image).convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
      except (OSError, UserError):
        small = None
      found[example.id] = small
  return found
