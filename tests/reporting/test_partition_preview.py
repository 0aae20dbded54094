"""`afspl partition`: how a config would split its data."""

import json

import pytest

from afspl_jax.cli import main


@pytest.fixture
def command(shapes_dir, tmp_path):
  return [
    "partition",
    "shapes.py",
    f"--config.data.dir={shapes_dir}",
    "--config.data.min_examples=1",
    f"--workdir={tmp_path / 'new' / 'folder'}",
  ]


def test_a_partition_is_printed_and_written(command, tmp_path, capsys):
  assert main([*command, "--config.data.partition=pathological", "--config.seed=3"]) == 0
  out = capsys.readouterr().out.splitlines()
  folder = tmp_path / "new" / "folder"
  found = json.loads((folder / "partition.json").read_text())
  assert found["partition"] == "pathological" and found["seed"] == 3
  assert out[0].split()[:4] == ["client", "train", "validation", "test"]
  for line, (name, parts) in zip(out[1:11], found["clients"].items(), strict=True):
    assert line.split()[:4] == [name, *(str(len(part)) for part in parts.values())]
    assert all(label in line for label in found["labels"][name])
  assert out[-2:] == [f"manifest: {folder}/partition.json", f"picture: {folder}/partition.png"]
  assert (folder / "partition.png").exists()


def test_with_many_clients_the_largest_and_smallest_are_shown(command, capsys):
  assert main([*command, "--config.data.partition=iid", "--config.data.num_clients=50"]) == 0
  out = capsys.readouterr().out.splitlines()
  assert len(out) == 1 + 40 + 1 + 1 + 2
  assert "... 10 clients between these ..." in out[21]


def test_a_cap_is_in_the_table_and_in_the_manifest(command, tmp_path, capsys):
  assert main([*command, "--config.data.max_examples=3"]) == 0
  out = capsys.readouterr().out.splitlines()
  found = json.loads((tmp_path / "new" / "folder" / "partition.json").read_text())
  assert found["max_examples"] == 3
  for line, parts in zip(out[1:11], found["clients"].values(), strict=True):
    assert line.split()[1] == str(len(parts["train"])) == "3"
  assert out[11].endswith("examples of train: 3 to 3, median 3 (data.max_examples=3)")


def test_mistakes_are_one_clear_line_and_status_2(command, tmp_path, capsys):
  run = tmp_path / "run"
  run.mkdir()
  (run / "config.json").touch()
  for flags, wanted in (
    (["--config.data.num_clients=3"], "data.num_clients: expected 10"),
    ([f"--workdir={run}"], "expected a folder that is not a run folder"),
    ([f"--workdir={run / 'config.json' / 'x'}"], "expected a folder that can be written"),
    (["--config.data.alpha=3"], "data.alpha"),
    (
      ["--config.data.min_examples=8", "--config.data.max_examples=7"],
      "data.max_examples: expected 0, or at least data.min_examples, 8; got 7",
    ),
  ):
    assert main([*command, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and wanted in err and err.count("\n") == 1
