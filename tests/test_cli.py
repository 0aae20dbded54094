import json

import pytest

from afspl_jax.cli import main
from afspl_jax.evaluation.metrics.captions import score_captions

LINE = {"prediction": "a dog", "references": ["a dog runs", "the dog"]}


def test_score_prints_the_scores_as_json(tmp_path, capsys):
  file = tmp_path / "predictions.jsonl"
  file.write_text(f"{json.dumps(LINE)}\n" * 2)
  assert main(["score", str(file)]) == 0
  expected = score_captions([LINE["prediction"]] * 2, [LINE["references"]] * 2).corpus()
  assert json.loads(capsys.readouterr().out) == expected


def test_a_bad_line_or_file_is_one_clear_line_and_status_2(tmp_path, capsys):
  file = tmp_path / "predictions.jsonl"
  file.write_text(json.dumps(LINE) + '\n{"prediction": 3}\n')
  for path, wanted in ((file, f"{file}:2: expected the keys"), (tmp_path / "no", "No such file")):
    assert main(["score", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and wanted in err and err.count("\n") == 1


STUDY = """
from afspl_jax.config import Experiment
from afspl_jax.config import Study

def get_study():
  variants = {"full AFSPL": {}, "dense FedAvg": {"fed.rounds": 1, **EXTRA}}
  return Study(Experiment(), {"iid": {}}, variants, (0,))
"""


def one_line(argv: list[str], capsys) -> str:
  """The complaint that a command ends with."""
  assert main(argv) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.count("\n") == 1 and err.startswith("afspl ablate: ")
  return err


def test_a_study_that_does_not_work_is_one_clear_line_and_status_2(tmp_path, capsys):
  file, workdir = tmp_path / "study.py", tmp_path / "w"
  for text, wanted in (
    ("x = 1", "expected get_study() to return a Study; got NoneType"),
    (STUDY, f"{file}:6: NameError"),
    ('EXTRA = {"fed.round": 1}' + STUDY, "'dense FedAvg' in 'iid': fed.round: no such field"),
  ):
    file.write_text(text)
    assert wanted in one_line(["ablate", str(file), f"--workdir={workdir}"], capsys)
  assert "path to a .py file" in one_line(["ablate", "no.py"], capsys)
  assert not workdir.exists()


def test_tables_of_a_study_that_never_ran_say_what_to_do(tmp_path, capsys):
  file = tmp_path / "study.py"
  file.write_text("EXTRA = {}" + STUDY)
  command = ["ablate", str(file), f"--workdir={tmp_path / 'w'}"]
  assert f"Run: afspl {' '.join(command)}" in one_line([*command, "--table"], capsys)


def test_tables_of_a_study_that_has_not_finished_are_written(tmp_path, capsys):
  file, workdir = tmp_path / "study.py", tmp_path / "w"
  file.write_text("EXTRA = {}" + STUDY)
  workdir.mkdir()
  assert main(["ablate", str(file), f"--workdir={workdir}", "--table"]) == 0
  assert capsys.readouterr().out == f"tables: {workdir / 'table.md'}\n"
  text = (workdir / "table.md").read_text()
  assert f"`afspl ablate {file} --workdir={workdir}`" in text.splitlines()[0]
  assert "- dense FedAvg, seed 0: not finished" in text


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_in_its_group_with_an_example(argv, capsys):
  try:
    assert main(argv) == 0
  except SystemExit as stop:
    assert stop.code == 0
  _, _, text = capsys.readouterr().out.partition("\n\n")
  listed = {}
  for part in text.split("\n\n")[1:-1]:
    title, *rows, example = part.splitlines()
    listed[title] = [row.split()[0] for row in rows]
    assert example.split()[:2] == ["e.g.", "afspl"] and example.split()[2] in listed[title]
  assert listed == {
    "run:": ["run"],
    "look:": ["status", "report", "dashboard", "prepare", "partition"],
    "use:": ["caption", "answer", "evaluate", "export", "score"],
    "study:": ["ablate"],
    "operate:": ["keys", "audit"],
  }


def test_version_names_the_package(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["--version"])
  assert stop.value.code == 0 and capsys.readouterr().out.startswith("afspl ")


def test_run_takes_the_flags_of_launch_py(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["run", "--help", "uplink"])
  out, _ = capsys.readouterr()
  assert stop.value.code == 0 and out.startswith("uplink: ") and "uplink.energy = 0.4" in out
  assert main(["run", "--config=nope.py"]) == 2
  assert capsys.readouterr().err.startswith("afspl run: --config=nope.py: expected one of ")
