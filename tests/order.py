"""Which tests begin first, which share a worker, and which run only if they are asked for."""

import pytest
from xdist.scheduler import LoadFileScheduling

# Begun first, in this order: a worker that begins a long file when the others have nothing left
# works alone. Half of these wait for processes, half compute.
LONG = (
  "federation/transport/test_faults.py",
  "federation/transport/test_killed_hosts.py",
  "test_learning.py",
  "runs/test_hosts.py",
  "test_launch.py",
  "test_wheel.py",
  "trained/test_prompter_file.py",
  "federation/transport/test_deployment.py",
  "study/test_ablate.py",
  "benchmarks/test_torch_sides.py",
  "training/test_train_step.py",
  "models/test_decoding.py",
)

# Files that look at the runs of recorded_run.py: one worker has them all, and makes each run once.
RECORDED = (
  "trained/test_prompter_file.py",
  "trained/test_model.py",
  "scoring/test_rescore.py",
  "scoring/test_final_scores.py",
  "reporting/test_audit.py",
  "federation/test_privacy.py",
  "client/test_scaffold_training.py",
)


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: takes more than a minute; run with -m slow")


def pytest_collection_modifyitems(config, items):
  """The long ones first, the others in the order that they are found in; slow ones if asked for."""
  if "slow" not in config.option.markexpr:
    for item in items:
      if "slow" in item.keywords:
        item.add_marker(pytest.mark.skip(reason="takes more than a minute; run with -m slow"))
  place = {name: i for i, name in enumerate(LONG)}

  def order(item) -> int:
    return next((i for name, i in place.items() if str(item.path).endswith(name)), len(LONG))

  items.sort(key=order)


class FileScheduling(LoadFileScheduling):
  """A file's tests are one worker's, and so are those of all files that share their runs."""

  def _split_scope(self, nodeid: str) -> str:
    file = super()._split_scope(nodeid)
    return "recorded" if file.endswith(RECORDED) else file


def pytest_xdist_make_scheduler(config, log):
  return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None
