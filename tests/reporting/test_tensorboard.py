"""TensorBoard events: one for every number of a run, however often it was resumed."""

import io
import os
import struct
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from afspl_jax.errors import UserError
from afspl_jax.reporting.tensorboard import TensorBoard
from afspl_jax.storage.run_lines import read_lines
from afspl_jax.types import Example
from tests.reporting.html.made_run import made_run, put


class Pictures:
  """A validation split; its second image is damaged."""

  fingerprint = images_fingerprint = "1"

  def __len__(self):
    return 6

  def __getitem__(self, index):
    return Example(f"site-{index}", str(index), ("a text",))

  def images(self):
    return [str(i) for i in range(6)]

  def load_image(self, key):
    if key == "1":
      raise OSError("damaged")
    return Image.new("RGB", (300, 200), (10 * int(key), 0, 0))


def events(run):
  """Every event in the run's files, in order, its checksum right."""
  out = []
  for file in sorted((run / "tensorboard").iterdir()):
    data = io.BytesIO(file.read_bytes())
    while header := data.read(8):
      (size,) = struct.unpack("Q", header)
      data.read(4)
      record = data.read(size)
      (check,) = struct.unpack("I", data.read(4))
      crc = crc32c(record)
      assert check == (((crc >> 15 | crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
      out.append(Event.FromString(record))
  return out


def scalars(run):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(run)
    for value in event.summary.value
    if value.WhichOneof("value") == "simple_value"
  ]


@pytest.fixture
def run(tmp_path):
  return made_run(tmp_path / "run")


def test_every_number_of_a_line_is_a_point_at_its_round(run):
  lines = read_lines(run / "metrics.jsonl")
  with TensorBoard(run) as board:
    for end in range(1, len(lines) + 1):
      put(run / "metrics.jsonl", lines[:end])
      board.update(Pictures())
  found = scalars(run)
  wanted = [
    (line["round"], f"{line['split']}/{name}", pytest.approx(value))
    for line in lines
    for name, value in line.items()
    if name not in ("round", "split")
  ]
  assert found == wanted and len(wanted) > 50


def test_a_resumed_run_has_every_point_once_and_none_of_a_lost_round(run):
  lines = read_lines(run / "metrics.jsonl")
  lost = {"round": 3, "split": "train", "loss": 99.0}
  first = TensorBoard(run)
  put(run / "metrics.jsonl", [*lines[:3], lost])
  first.update(Pictures())  # and then killed
  put(run / "metrics.jsonl", lines[:5])
  later = time.time_ns() + 10**9  # a clock of the file system ticks every few milliseconds
  os.utime(run / "metrics.jsonl", ns=(later, later))  # by the next round
  with TensorBoard(run) as board:
    board.update(Pictures())
    put(run / "metrics.jsonl", lines)
    board.update(Pictures())
  found = scalars(run)
  assert len({(step, tag) for step, tag, _ in found}) == len(found)
  assert 99.0 not in [value for _, _, value in found]
  # A running TensorBoard drops the events that it read before.
  head = events(run)[:2]
  assert head[0].file_version == "brain.Event:2" and head[1].session_log.status == 1
  assert head[1].step == 0
  first.close()


def test_a_finished_run_that_is_started_again_is_unchanged(run):
  seen = []
  for _ in range(2):
    with TensorBoard(run) as board:
      board.update(Pictures())
    seen.append({file: file.read_bytes() for file in (run / "tensorboard").iterdir()})
  assert seen[0] == seen[1] and len(seen[0]) == 1


def test_images_show_texts_of_each_scored_round_without_unreadable_images(run):
  with TensorBoard(run) as board:
    board.update(Pictures())
  shown = [
    (event.step, value.image)
    for event in events(run)
    for value in event.summary.value
    if value.WhichOneof("value") == "image"
  ]
  assert [step for step, _ in shown] == [0, 2, 4]
  image = Image.open(io.BytesIO(shown[0][1].encoded_image_string))
  assert image.width == 3 * 200  # of examples 0 to 3
  assert image.getpixel((204 + 96, 60))[0] in range(17, 24)  # example 2
  below = image.convert("L").crop((0, 200, 200, image.height))
  assert below.getextrema()[0] < 50  # its text


def test_a_value_that_was_not_finite_has_no_point(run):
  put(run / "metrics.jsonl", [{"round": 1, "split": "train", "loss": None, "clients": 3}])
  with TensorBoard(run) as board:
    board.update(Pictures())
  assert scalars(run) == [(1, "train/clients", 3.0)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_like_that_of_the_runs_files(run, monkeypatch):
  lines = read_lines(run / "metrics.jsonl")
  put(run / "metrics.jsonl", lines[:2])
  with TensorBoard(run) as board:
    board.update(Pictures())
    points = scalars(run)
    put(run / "metrics.jsonl", lines)
    with open("/dev/full", "wb") as full, board._writer._writer:
      monkeypatch.setattr(board._writer, "_writer", full)
      with pytest.raises(UserError, match=r"tensorboard: expected to write to it; got: .*No space"):
        board.update(Pictures())
      monkeypatch.undo()
    board.update(Pictures())  # there is room again
  found = scalars(run)
  assert found[: len(points)] == points and found[-1][:2] == (4, "test_personal/clients")
  assert len({(step, tag) for step, tag, _ in found}) == len(found)


def test_without_the_library_nothing_is_written(run, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  (run / "metrics.jsonl").write_text("{\n")  # which is not read, either
  with TensorBoard(run) as board:
    board.update(Pictures())
  assert not (run / "tensorboard").exists()
