import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint.experimental.v1 as orbax_v1
import pytest

from afspl_jax.storage.checkpoints import CheckpointError, Checkpoints


def state(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "params": {
      "pool": {"prompts": rng.normal(size=(2, 3, 999)).astype(np.float32), "scale": np.float32(2)},
      "half": rng.normal(size=5).astype(np.float16),
      "brain": rng.normal(size=5).astype(ml_dtypes.bfloat16),
    },
    "strategy_state": {"momentum": rng.normal(size=3), "step": np.int32(seed)},
  }


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert isinstance(y, np.ndarray) and (np.shape(x), x.dtype) == (y.shape, y.dtype)
    assert np.asarray(x).tobytes() == y.tobytes()


def written(folder, rounds=range(3)):
  checkpoints = Checkpoints(folder)
  for round in rounds:
    checkpoints.save(round, state(round))
  checkpoints.close()


def test_round_trip_in_a_new_process_is_bit_identical(tmp_path):
  written(tmp_path / "c")
  round, restored = Checkpoints(tmp_path / "c").restore(state())
  assert round == 2
  assert_same_bits(state(2), restored)


def test_jax_arrays_and_an_empty_strategy_state_are_restored(tmp_path):
  tree = {"params": {"a": jax.numpy.arange(3.0)}, "strategy_state": {}}
  Checkpoints(tmp_path).save(0, tree)
  round, restored = Checkpoints(tmp_path).restore(tree)
  assert round == 0 and restored["strategy_state"] == {}
  np.testing.assert_array_equal(restored["params"]["a"], [0, 1, 2])


def test_a_new_folder_has_no_checkpoint(tmp_path):
  assert Checkpoints(tmp_path / "deep" / "er").restore(state()) is None


def test_the_last_two_checkpoints_are_kept(tmp_path):
  written(tmp_path, range(6))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
  written(tmp_path)
  shutil.move(tmp_path / "2", tmp_path / "2.orbax-checkpoint-tmp")  # killed before the rename
  checkpoints = Checkpoints(tmp_path)
  round, restored = checkpoints.restore(state())
  assert round == 1
  assert_same_bits(state(1), restored)
  checkpoints.save(2, state(2))
  assert_same_bits(state(2), checkpoints.restore(state())[1])
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def cut(path):
  path.write_bytes(path.read_bytes()[:10])


def largest(folder):
  return max((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGES = pytest.mark.parametrize(
  "damage", [flip, cut, Path.unlink], ids=["changed byte", "cut", "gone"]
)


@DAMAGES
def test_a_damaged_newest_checkpoint_is_an_error_that_names_its_folder(tmp_path, damage):
  written(tmp_path)
  damage(largest(tmp_path / "2" / "state"))
  with pytest.raises(CheckpointError, match=f"{tmp_path}/2: expected .* Delete that folder"):
    Checkpoints(tmp_path).restore(state())
  shutil.rmtree(tmp_path / "2")
  assert_same_bits(state(1), Checkpoints(tmp_path).restore(state())[1])


@DAMAGES
def test_the_newest_whole_checkpoint_is_used_and_a_damaged_one_is_set_aside(tmp_path, damage):
  written(tmp_path)
  damage(largest(tmp_path / "2" / "state"))
  said = []
  checkpoints = Checkpoints(tmp_path)
  round, restored = checkpoints.restore_newest_whole(state(), said.append)
  assert round == 1
  assert_same_bits(state(1), restored)
  (line,) = said
  assert line.startswith(f"{tmp_path}/2: damaged (") and "\n" not in line
  assert line.endswith("). It is now 2.damaged; continuing after round 1")
  checkpoints.save(2, state(2))  # the round is saved again, by this process and by the next
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, state(3))
  assert checkpoints.rounds() == [2, 3]
  assert checkpoints.restore_newest_whole(state(), said.append)[0] == 3
  assert len(said) == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "2.damaged", "3"]
  assert Checkpoints(tmp_path, read_only=True).rounds() == [2, 3]


@pytest.mark.parametrize("name", ["proof", "state"])
def test_a_checkpoint_of_which_a_part_is_missing_is_damaged(tmp_path, name):
  written(tmp_path)
  shutil.rmtree(tmp_path / "2" / name)
  assert Checkpoints(tmp_path).restore_newest_whole(state(), [].append)[0] == 1


def test_damage_to_the_same_round_again_is_set_aside_too(tmp_path):
  written(tmp_path)
  for _ in range(2):
    checkpoints = Checkpoints(tmp_path)
    flip(largest(tmp_path / "2" / "state"))
    assert checkpoints.restore_newest_whole(state(), [].append)[0] == 1
    checkpoints.save(2, state(2))
    checkpoints.close()


def test_with_no_whole_checkpoint_nothing_is_set_aside_and_the_error_says_what_to_do(tmp_path):
  written(tmp_path)
  for round in "12":
    cut(largest(tmp_path / round / "state"))
  with pytest.raises(
    CheckpointError, match=f"{tmp_path}: expected an undamaged checkpoint; .* or choose another"
  ):
    Checkpoints(tmp_path).restore_newest_whole(state(), [].append)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_another_model_is_no_damage_to_go_on_from_before(tmp_path):
  written(tmp_path)
  template = state()
  why = other_dtype(template)
  with pytest.raises(CheckpointError, match=why):
    Checkpoints(tmp_path).restore_newest_whole(template, [].append)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("reason", ["PERMISSION_DENIED: x", "RESOURCE_EXHAUSTED: x"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
  tmp_path, monkeypatch, reason
):
  written(tmp_path)
  checkpoints = Checkpoints(tmp_path)

  def fail(*_, **__):
    raise ValueError(reason)

  monkeypatch.setattr(checkpoints, "_restore", fail)
  with pytest.raises(CheckpointError, match=reason):
    checkpoints.restore_newest_whole(state(), [].append)
  assert (tmp_path / "2").exists()


def test_a_read_only_error_does_not_advise_to_delete_a_checkpoint(tmp_path):
  written(tmp_path)
  flip(largest(tmp_path / "2" / "state"))
  with pytest.raises(
    CheckpointError, match=f"{tmp_path}/2: expected .* Leave that folder"
  ) as error:
    Checkpoints(tmp_path, read_only=True).restore(state())
  assert "elete" not in str(error.value)


def test_an_empty_folder_in_place_of_the_newest_is_an_error(tmp_path):
  written(tmp_path)
  (tmp_path / "9").mkdir()
  with pytest.raises(CheckpointError, match=f"{tmp_path}/9: expected"):
    Checkpoints(tmp_path).restore(state())


def other_shape(tree):
  tree["params"]["pool"]["prompts"] = np.zeros((2, 3, 41), np.float32)
  return r"params/pool/prompts: 'float32\(2, 3, 999\)' -> 'float32\(2, 3, 41\)'"


def other_dtype(tree):
  tree["params"]["half"] = np.zeros(5, np.float32)
  return r"params/half: 'float16\(5,\)' -> 'float32\(5,\)'"


def more_leaves(tree):
  tree["params"]["pool"]["keys"] = np.zeros(2, np.float32)
  return r"params/pool/keys: '\(absent\)' -> 'float32\(2,\)'"


def fewer_leaves(tree):
  del tree["params"]["half"]
  return r"params/half: 'float16\(5,\)' -> '\(absent\)'"


@pytest.mark.parametrize("change", [other_shape, other_dtype, more_leaves, fewer_leaves])
def test_a_checkpoint_of_another_model_is_rejected(tmp_path, change):
  written(tmp_path)
  template = state()
  why = change(template)
  with pytest.raises(CheckpointError, match=why):
    Checkpoints(tmp_path).restore(template)


def test_a_folder_that_is_not_writable_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(CheckpointError, match=f"{tmp_path}/file/c: expected a folder to write"):
    Checkpoints(tmp_path / "file" / "c")


def test_reading_a_running_run_changes_nothing_in_its_folder(tmp_path):
  folder = tmp_path / "c"
  written(folder)
  half = folder / "3.orbax-checkpoint-tmp"  # what another process is writing
  half.mkdir()
  (half / "x").write_text("x")
  before = sorted(folder.rglob("*"))
  checkpoints = Checkpoints(folder, read_only=True)
  assert checkpoints.rounds() == [1, 2]
  for round in (1, 2):
    assert_same_bits(state(round), checkpoints.restore(state(), round)[1])
  checkpoints.close()
  assert sorted(folder.rglob("*")) == before


def test_the_next_api_of_orbax_reads_these_checkpoints(tmp_path):
  written(tmp_path)
  items = {"state": state(), "proof": None}
  found = orbax_v1.load_checkpointables(tmp_path / "2", items)
  assert_same_bits(state(2), jax.tree.map(np.asarray, found["state"]))
  assert found["proof"]["leaves"]["params/half"] == "float16(5,)"
