import json

from afspl_jax.cli import main
from afspl_jax.metrics.captions import score_captions

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
