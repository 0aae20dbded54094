"""A disk that refuses a file is reported in one line, with the file and the free space."""

import errno
import os
import re
from pathlib import Path

import pytest

from afspl_jax import cli
from afspl_jax.errors import UserError
from afspl_jax.runs.commands import run, use
from afspl_jax.storage import disk_errors
from afspl_jax.storage.disk_errors import disk_error


def test_the_line_names_the_file_the_free_space_and_what_to_do(tmp_path):
  file = tmp_path / "not" / "yet" / "there"
  error = disk_error(file, "a thing", OSError(errno.ENOSPC, "No space left on device"))
  assert type(error) is UserError
  assert re.fullmatch(
    re.escape(f"{file}: expected to write a thing; got: No space left on device (")
    + r"[0-9,]+ bytes free\)\. Free the disk and start the same command again to go on",
    str(error),
  )


def test_only_the_first_line_of_a_reason_is_kept_and_an_empty_one_is_named():
  lines = str(disk_error(Path("/x"), "it", ValueError("first\nsecond"), more="More. "))
  assert "got: first (" in lines and "second" not in lines and "free). More. Free the disk" in lines
  assert "got: OSError (" in str(disk_error(Path("/x"), "it", OSError()))


def test_of_a_long_chain_of_paths_the_systems_words_are_kept():
  error = ValueError(
    "RESOURCE_EXHAUSTED: " + 50 * "/a/long/path" + ": No space left on device [28]"
  )
  assert "got: No space left on device (" in str(disk_error(Path("/x"), "it", error))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_must_not_be_written_is_no_full_disk(code):
  for error in (
    OSError(code, os.strerror(code), "/x/y"),
    ValueError(f"/a: {os.strerror(code)} [1]"),
  ):
    said = str(disk_error(Path("/x/y"), "it", error))
    assert f"got: {os.strerror(code)} (" in said and "Free the disk" not in said
    assert said.endswith("Allow writing there and start the same command again to go on")


def test_the_disks_error_is_reported_though_the_free_space_cannot_be_found(monkeypatch):
  def fail(folder):
    raise PermissionError

  monkeypatch.setattr(disk_errors.shutil, "disk_usage", fail)
  said = str(disk_error(Path("/x"), "it", OSError(errno.ENOSPC, "No space left on device")))
  assert "got: No space left on device (free space unknown). Free the disk" in said


def test_a_full_disk_wherever_it_is_met_ends_a_command_in_one_line(tmp_path, monkeypatch, capsys):
  def fail(launch):
    raise OSError(errno.ENOSPC, "No space left on device", "/x/predictions.jsonl")

  monkeypatch.setattr(run, "_launch", fail)
  monkeypatch.setattr(run.signal, "signal", lambda *_: None)
  assert run.launch("launch.py", ["launch.py"], [f"--workdir={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("launch.py: /x/predictions.jsonl: expected to write to it; got: No space")
  assert "bytes free). Free the disk and start the same command again" in error
  assert error.count("\n") == 1


def test_so_it_does_for_the_other_commands_and_other_errors_are_not_hidden(monkeypatch, capsys):
  def failing(error):
    def fail(args):
      raise error

    return fail

  monkeypatch.setattr(use, "_score", failing(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))))
  assert cli.main(["score", "x"]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"afspl score: {Path.cwd()}: expected to write to it; got: Disk quota")
  assert error.count("\n") == 1
  monkeypatch.setattr(use, "_score", failing(ConnectionResetError(errno.ECONNRESET, "reset")))
  with pytest.raises(ConnectionResetError):
    cli.main(["score", "x"])
