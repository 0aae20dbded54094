"""What a client keeps: round trips, damage, and names that are no file names."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from afspl_jax.errors import UserError
from afspl_jax.federation.client.client_store import ClientStore

ROOT = Path(__file__).parents[3]


def state(value=1.0):
  return {
    "own": {"local": {"prompt": np.full((4, 3), value, np.float32), "scale": np.float32(value)}},
    "residual": {"mapper": {"bias": np.array([value, -0.0, np.inf], np.float32)}},
  }


def values(found):
  """The value that `state` was made of, if all leaves have it and are of its types."""
  expected = state(float(found["own"]["local"]["scale"]))
  for part, leaf, like in (
    ("own", found["own"]["local"]["prompt"], expected["own"]["local"]["prompt"]),
    ("own", found["own"]["local"]["scale"], expected["own"]["local"]["scale"]),
    ("residual", found["residual"]["mapper"]["bias"], expected["residual"]["mapper"]["bias"]),
  ):
    assert found.keys() == {"own", "residual"} and found[part].keys() == expected[part].keys()
    assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
    assert leaf.tobytes() == like.tobytes()
  return float(found["own"]["local"]["scale"])


@pytest.fixture
def store(tmp_path):
  return ClientStore(tmp_path / "clients")


def files(folder):
  return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_a_state_comes_back_bit_by_bit_and_every_site_has_its_own(store):
  store.save("a", 1, state(1.5))
  store.save("b", 1, state(2.5))
  assert values(store.load("a", 2, state())) == 1.5
  assert values(store.load("b", 2, state())) == 2.5
  assert store.load("c", 2, state()) is None


def test_what_a_client_learned_in_a_round_or_later_is_not_seen_when_it_is_repeated(store):
  for round in (2, 5, 12):
    store.save("a", round, state(round))
  newest = {before: store.load("a", before, state()) for before in (1, 2, 3, 5, 6, 12, 13, 99)}
  assert newest[1] is newest[2] is None
  found = {before: values(kept) for before, kept in newest.items() if before > 2}
  assert found == {3: 2, 5: 2, 6: 5, 12: 5, 13: 12, 99: 12}


def test_a_repeated_round_replaces_what_was_kept_of_it(store):
  store.save("a", 3, state(1))
  store.save("a", 3, state(2))
  assert values(store.load("a", 4, state())) == 2


def test_what_a_killed_process_had_not_finished_writing_goes_with_the_next_state(store, tmp_path):
  store.save("a", 1, state())
  (tmp_path / "clients" / "a" / "round_000002.safetensors.tmp").write_bytes(b"half")
  store.save("a", 4, state())
  assert files(tmp_path) == [f"clients/a/round_00000{round}.safetensors" for round in (1, 4)]


def test_the_last_three_rounds_are_kept(store, tmp_path):
  for round in (1, 4, 9, 10, 200):
    store.save("a", round, state(round))
  store.save("b", 1, state())
  kept = [f"clients/a/round_{round:06d}.safetensors" for round in (9, 10, 200)]
  assert files(tmp_path) == [*kept, "clients/b/round_000001.safetensors"]


def one_line(error):
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  "other",
  [
    {"own": state()["own"]},
    {**state(), "more": np.zeros(2, np.float32)},
    {**state(), "residual": {"mapper": {"bias": np.zeros((3, 1), np.float32)}}},
    {**state(), "residual": {"mapper": {"bias": np.zeros(3, np.float16)}}},
    {**state(), "residual": {"mapper": {"kernel": np.zeros(3, np.float32)}}},
  ],
  ids=["less", "more", "other shape", "other dtype", "other name"],
)
def test_the_state_of_another_model_is_rejected(store, other):
  store.save("a", 1, other)
  with pytest.raises(
    UserError, match=r"round_000001.safetensors: expected the state of a"
  ) as error:
    store.load("a", 2, state())
  assert "got: leaves" in one_line(error) and "Delete the file to go on" in one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_damaged_state_is_one_clear_error_and_the_round_before_is_still_there(
  store, tmp_path, keep
):
  store.save("a", 1, state(1))
  store.save("a", 2, state(2))
  file = tmp_path / "clients" / "a" / "round_000002.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(
    UserError, match=r"round_000002.safetensors: expected the state of a"
  ) as error:
    store.load("a", 3, state())
  assert "Delete the file to go on from the round before" in one_line(error)
  file.unlink()
  assert values(store.load("a", 3, state())) == 1


def test_who_only_looks_is_not_told_to_delete_a_state_and_saves_none(store, tmp_path):
  store.save("a", 1, state(1))
  file = tmp_path / "clients" / "a" / "round_000001.safetensors"
  content = file.read_bytes()
  looked = ClientStore(tmp_path / "clients", read_only=True)
  with pytest.raises(ValueError, match="read-only"):
    looked.save("a", 1, state(2))
  assert file.read_bytes() == content and values(looked.load("a", 2, state())) == 1
  file.write_bytes(content[:60])
  with pytest.raises(
    UserError, match=r"round_000001.safetensors: expected the state of a"
  ) as error:
    looked.load("a", 2, state())
  assert "Leave the file where it is" in one_line(error) and "elete" not in one_line(error)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
  (tmp_path / "clients").touch()
  with pytest.raises(UserError, match=r"expected to write the state of a; got: .*") as error:
    ClientStore(tmp_path / "clients").save("a", 1, state())
  assert "Free the disk and start the same command again" in one_line(error)


NAMES = ["a/b", "a", "a%2Fb", "../a", "..", ".", "/etc", "St. Ägid", "医院", "a b", "a.b", "A:b"]


def test_whatever_sites_are_called_they_stay_apart_and_inside_the_folder(store, tmp_path):
  for number, name in enumerate(NAMES):
    store.save(name, 1, state(number))
  for number, name in enumerate(NAMES):
    assert values(store.load(name, 2, state())) == number
  written = [Path(file).parts for file in files(tmp_path)]
  assert len(written) == len(NAMES)
  for parts in written:
    assert len(parts) == 3 and parts[0] == "clients"


def test_a_write_that_was_cut_short_is_not_seen(store, tmp_path):
  store.save("a", 1, state(1))
  scratch = tmp_path / "clients" / "a" / "round_000002.safetensors.tmp"
  scratch.write_bytes(b"half of it")
  assert values(store.load("a", 3, state())) == 1
  store.save("a", 2, state(2))
  assert values(store.load("a", 3, state())) == 2 and not scratch.exists()


def test_kill_9_leaves_whole_states_only(tmp_path):
  code = (
    "import sys, numpy as np; from afspl_jax.federation.client.client_store import ClientStore\n"
    "store, round = ClientStore(sys.argv[1]), 0\n"
    "while True:\n"
    "  round += 1\n"
    "  store.save('a', round, {'x': np.full(200_000, round, np.float32)})\n"
    "  print(round, flush=True)"
  )
  writer = subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)],
    stdout=subprocess.PIPE,
  )
  try:
    said = [int(writer.stdout.readline()) for _ in range(5)]
  finally:
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.stdout.read().splitlines()]
    writer.wait()
    writer.stdout.close()
  found = ClientStore(tmp_path).load("a", 10**6, {"x": np.zeros(200_000, np.float32)})["x"]
  assert found.min() == found.max() and found[0] in (said[-1], said[-1] + 1)


def test_a_run_that_begins_again_further_back_keeps_what_it_learns(tmp_path):
  store = ClientStore(tmp_path / "clients")
  for round in (22, 23, 24, 1):
    store.save("alder", round, {"own": np.full(2, round, np.float32)})
  template = {"own": np.zeros(2, np.float32)}
  np.testing.assert_array_equal(store.load("alder", 2, template)["own"], 1)
  np.testing.assert_array_equal(store.load("alder", 99, template)["own"], 1)
  assert (tmp_path / "clients").stat().st_mode & 0o777 == 0o700
