"""A finished run that is taken up again, as if it had been killed in its last round."""

import functools
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tqdm import tqdm

from afspl_jax.runs import run as runs
from tests.recorded_run import Recorded


def killed_and_resumed(run: Recorded, folder: Path) -> Path:
  """A copy of the run without its last checkpoint and its last lines, run again to its end."""
  shutil.copytree(run.path, folder)
  rounds = run.config.fed.rounds
  shutil.rmtree(folder / "checkpoints" / str(rounds))
  silent = functools.partial(tqdm, disable=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(run.path.parent / "features"))
    runs.run_experiment(run.config, folder, progress=silent, say=lambda text: None)
  return folder


def states(folder: Path) -> dict[str, dict]:
  """Every leaf that clients keep, by its file."""
  files = sorted(folder.glob("*/*/round_*.safetensors"))
  return {str(file.relative_to(folder)): load_file(file) for file in files}


def assert_same_states(one: Path, other: Path) -> None:
  """Requires the same files at all clients, to the bit."""
  found, expected = states(one), states(other)
  assert found.keys() == expected.keys() and expected
  for file, leaves in expected.items():
    assert found[file].keys() == leaves.keys()
    assert all((found[file][name] == leaf).all() for name, leaf in leaves.items()), file
