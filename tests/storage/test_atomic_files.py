import os

import pytest

from afspl_jax.storage.atomic_files import append_text, create_file, replaced_file, write_text


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
  file = tmp_path / "a.txt"
  file.write_text("old")
  with replaced_file(file) as scratch:
    scratch.write_text("new")
    assert file.read_text() == "old" and scratch.parent == tmp_path
  assert file.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_file_stays_as_it_was_when_the_block_raises(tmp_path, error):
  file = tmp_path / "a.txt"
  file.write_text("old")
  with pytest.raises(type(error)), replaced_file(file) as scratch:
    scratch.write_text("half of the n")
    raise error
  assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_text_is_written_as_it_is(tmp_path):
  write_text(tmp_path / "a", "ß\n\r\n")
  assert (tmp_path / "a").read_bytes() == "ß\n\r\n".encode()


def test_a_created_file_has_its_mode_and_is_never_overwritten(tmp_path):
  create_file(tmp_path / "key", b"secret", 0o600)
  assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
  with pytest.raises(FileExistsError):
    create_file(tmp_path / "key", b"another", 0o600)
  assert (tmp_path / "key").read_bytes() == b"secret"


@pytest.mark.parametrize("sync", [True, False])
def test_text_is_appended(tmp_path, sync):
  for text in ("one\n", "two\n"):
    append_text(tmp_path / "a", text, sync=sync)
  assert (tmp_path / "a").read_text() == "one\ntwo\n"
