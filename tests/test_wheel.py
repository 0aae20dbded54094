"""The wheel, installed without the checkout: commands, configs, a run, a federation on one host.

Its dependencies come from the environment of the tests; `afspl_jax` is the one in the wheel.
"""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.launcher import ROOT

GROUPS = ("run", "look", "use", "study", "operate")
OVERRIDES = {
  "fed.rounds": 1,
  "fed.cohort": 1,  # sites of a federation train alone
  "fed.clients_per_round": 2,
  "data.num_clients": 2,
  "eval.val_examples": 4,
  "eval.test_examples": 4,
}
ONE_ROUND = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
LIMIT = 1800  # seconds; no test measures time

FLWR_RUN = """
import sys
from flwr.app import Context, RecordDict
from afspl_jax import flower_app
from afspl_jax.federation.transport.local_grid import LocalGrid
settings = {"config": "shapes.py", "overrides": "fed.share=none", "workdir": "x"}
context = Context(1, 1, node_config={}, state=RecordDict(), run_config=settings)
try:
  flower_app.server_app(LocalGrid(flower_app.client_app, 1), context)
except ValueError as error:
  sys.exit(str(error))
"""


class Installed:
  """A virtual environment with the wheel, and an empty folder to run its programs in."""

  def __init__(self, wheel: Path, bin: Path, folder: Path, env: dict[str, str]):
    self.wheel, self.bin, self.folder, self.env = wheel, bin, folder, env

  def run(self, program: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [str(self.bin / program), *args],
      cwd=self.folder,
      env=self.env,
      capture_output=True,
      text=True,
      timeout=LIMIT,
    )

  def output(self, program: str, *args: str) -> str:
    """What a program prints that must succeed."""
    done = self.run(program, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory, launcher):
  base = tmp_path_factory.mktemp("wheel")
  build = ["build", "--wheel", "--no-isolation", f"--outdir={base}", str(ROOT)]
  subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True, timeout=LIMIT)
  (wheel,) = base.glob("*.whl")
  subprocess.run([sys.executable, "-m", "venv", base / "venv"], check=True, timeout=LIMIT)
  home = base / "venv"
  paths = {"base": str(home), "platbase": str(home)}
  site = Path(sysconfig.get_path("purelib", "venv", paths))
  bin = Path(sysconfig.get_path("scripts", "venv", paths))
  # Only the folder: .pth files in it, such as an editable install's, are not read.
  (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
  pip = [bin / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed"]
  subprocess.run([*pip, "--quiet", wheel], check=True, timeout=LIMIT)
  folder = base / "empty"
  folder.mkdir()
  env = launcher.env | {"PYTHONPATH": str(ROOT / "tests" / "startup")}  # not the checkout
  return Installed(wheel, bin, folder, env)


def test_the_package_in_use_is_that_of_the_wheel(installed):
  where = installed.output("python", "-c", "import afspl_jax; print(afspl_jax.__file__)")
  assert Path(where.strip()).is_relative_to(installed.bin.parent)


def test_the_wheel_carries_types_and_every_config(installed):
  names = set(zipfile.ZipFile(installed.wheel).namelist())
  assert "afspl_jax/py.typed" in names
  configs = {path.name for path in (ROOT / "configs").glob("*.py")}
  assert {f"afspl_jax/config/experiments/{name}" for name in configs} <= names
  assert not [name for name in names if name.startswith(("tests/", "configs/", "benchmarks/"))]


def test_the_version_is_that_of_the_wheel(installed):
  version = installed.output("afspl", "--version")
  assert version == installed.output("python", "-m", "afspl_jax", "--version")
  assert version == f"afspl {installed.wheel.name.split('-')[1]}\n"


def test_the_command_alone_prints_grouped_help(installed):
  text = installed.output("afspl")
  assert [line[:-1] for line in text.splitlines() if line.removesuffix(":") in GROUPS] == [*GROUPS]
  assert text.count("e.g. afspl ") == len(GROUPS)


def test_flwr_run_finds_the_configs(installed):
  done = installed.run("python", "-c", FLWR_RUN)
  assert "flwr run: expected fed.newcomers=0, fed.finetune=0, fed.share=all" in done.stderr


@pytest.fixture(scope="module")
def finished(installed, launcher):
  """The folder of one round, and what its process printed."""
  folder = installed.folder / "runs" / "one"
  return folder, installed.output(
    "afspl", "run", "--config=shapes.py", *launcher.small, *ONE_ROUND, "--workdir=runs/one"
  )


def lines(folder: Path, name: str) -> list[dict]:
  read = [json.loads(line) for line in (folder / name).read_text().splitlines()]
  return [{key: value for key, value in line.items() if key != "seconds"} for line in read]


def final_params(folder: Path) -> list[np.ndarray]:
  state = ocp.PyTreeCheckpointer().restore(folder / "checkpoints" / "1" / "state")
  leaves: list = [state["params"]]
  while any(isinstance(leaf, dict) for leaf in leaves):
    leaves = [p for leaf in leaves for p in (leaf.values() if isinstance(leaf, dict) else [leaf])]
  return [np.asarray(leaf) for leaf in leaves]


def assert_same_params(a: Path, b: Path) -> None:
  ours, theirs = final_params(a), final_params(b)
  assert len(ours) == len(theirs) > 5
  assert all(x.tobytes() == y.tobytes() for x, y in zip(ours, theirs, strict=True))


def test_a_run_of_the_wheel_gives_what_launch_py_gives(installed, finished, launcher):
  folder, output = finished
  other = launcher.base / "of_checkout"
  done = launcher.run("--config=shapes.py", *launcher.small, *ONE_ROUND, f"--workdir={other}")
  assert done.returncode == 0, done.stderr
  assert output.splitlines()[:-1] == done.stdout.splitlines()[:-1]
  assert output.splitlines()[-1] == "run folder: runs/one"
  for name in ("metrics.jsonl", "clients.jsonl"):
    assert lines(folder, name) == lines(other, name)
  assert_same_params(folder, other)


def test_mistakes_are_one_line_and_status_2(installed):
  done = installed.run("afspl", "run", "--config.fed.round=5")
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("afspl run: --config.fed.round: no such field. Did you mean")
  assert done.stderr.count("\n") == 1


def test_a_server_and_its_sites_run_from_the_wheel(installed, finished, launcher):
  local, _ = finished
  output = installed.output(
    "afspl", "run", "--role=local-net", *launcher.small, *ONE_ROUND, "--workdir=runs/net"
  )
  folder = installed.folder / "runs" / "net"
  assert output.splitlines()[-1] == "run folder: runs/net"
  trained = [line for line in lines(folder, "clients.jsonl") if line["status"] == "ok"]
  assert len(trained) == 2
  assert_same_params(folder, local)


def test_a_server_from_the_wheel_needs_its_keys(installed):
  done = installed.run("afspl", "run", "--role=server", "--keys=nowhere")
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  assert done.stderr.startswith("afspl run: nowhere")


def test_a_site_from_the_wheel_looks_for_itself_among_those_of_the_data(installed, launcher):
  site = ("--role=client", "--superlink=localhost:1", "--site=nobody", "--insecure")
  done = installed.run("afspl", "run", *launcher.small, *ONE_ROUND, *site)
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  assert "--site: expected one of " in done.stderr and "got 'nobody'" in done.stderr
