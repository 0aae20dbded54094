import json
import re

import pytest

from afspl_jax.evaluation.metrics.captions import score_captions
from afspl_jax.evaluation.score_file import score_file

GOOD = {"prediction": "a dog", "references": ["a dog runs", "the dog"]}
OTHER = {"prediction": "two cats", "references": ["two cats"]}


def write(tmp_path, content):
  path = tmp_path / "predictions.jsonl"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def test_a_file_scores_like_its_captions(tmp_path):
  path = write(tmp_path, "\n".join(map(json.dumps, [GOOD, OTHER])))
  expected = score_captions(
    [GOOD["prediction"], OTHER["prediction"]], [GOOD["references"], OTHER["references"]]
  )
  scores = score_file(path)
  assert scores == expected.corpus()
  assert scores["cider"] > 0
  assert score_file(str(path)) == scores


def test_lines_with_a_question_are_scored_as_answers(tmp_path):
  answer = {"question": "how many ?", "prediction": "Two.", "references": ["2"]}
  wrong = {"question": "what ?", "prediction": "cat", "references": ["dog"]}
  captions = score_file(write(tmp_path, "\n".join(map(json.dumps, [GOOD, OTHER]))))
  mixed = score_file(write(tmp_path, "\n".join(map(json.dumps, [GOOD, answer, OTHER, wrong]))))
  assert mixed == captions | {"exact_match": 0.5}
  assert score_file(write(tmp_path, json.dumps(answer))) == {"exact_match": 1.0}


def test_exact_match_counts_only_answers_with_one_reference(tmp_path):
  many = {"question": "what ?", "prediction": "cat", "references": ["cat"] * 3 + ["dog"] * 7}
  single = {"question": "what ?", "prediction": "The cat.", "references": ["CAT"]}
  wrong = {"question": "what ?", "prediction": "cat", "references": ["cats"]}
  assert score_file(write(tmp_path, json.dumps(many))) == {"vqa_accuracy": pytest.approx(0.9)}
  lines = "\n".join(map(json.dumps, [many, GOOD | {"references": ["a dog"]}, single, wrong]))
  scores = score_file(write(tmp_path, lines))
  assert scores["exact_match"] == 0.5
  assert scores["vqa_accuracy"] == pytest.approx(0.9)


def test_other_keys_blank_lines_and_windows_line_ends_are_accepted(tmp_path):
  plain = score_file(write(tmp_path, "\n".join(map(json.dumps, [GOOD, OTHER]))))
  lines = [json.dumps(GOOD | {"id": 7}), "", json.dumps(OTHER | {"id": None}), "", ""]
  assert score_file(write(tmp_path, b"\xef\xbb\xbf" + "\r\n".join(lines).encode())) == plain


@pytest.mark.parametrize(
  ("line", "complaint"),
  [
    ("{'prediction': 'a'}", "expected one JSON object per line"),
    ('{"prediction": "a dog", "refer', "expected one JSON object per line"),
    ("[" * 100_000, "expected one JSON object per line"),
    ('["a dog"]', "expected a JSON object"),
    ('{"references": ["a"]}', 'got ["references"]'.replace('"references"', "'references'")),
    ('{"prediction": "a"}', 'Add "references"'),
    ('{"prediction": 5, "references": ["a"]}', '"prediction" must be a string; got 5'),
    ('{"prediction": null, "references": ["a"]}', '"prediction" must be a string; got None'),
    ('{"prediction": "a", "references": "a dog"}', '"references" must be a list of strings'),
    ('{"prediction": "a", "references": ["a", 5]}', '"references" must be a list of strings'),
    ('{"prediction": "a", "references": []}', "at least one reference"),
    (json.dumps(GOOD | {"references": ["a", ""]}), '"references" must have no blank text'),
    (json.dumps(GOOD | {"references": ["\u200b"]}), '"references" must have no blank text'),
    (
      json.dumps(GOOD | {"references": ["a\0b"]}),
      '"references" must have no blank text and no NUL',
    ),
    (json.dumps(GOOD | {"question": " "}), '"question" must be a text in quotes, not blank'),
    (json.dumps(GOOD | {"id": 1.0}), "\"id\" must be unique; got '1' again"),
    (json.dumps(GOOD | {"id": [1]}), '"id" must be text or a number'),
    ('{"prediction": "a", "prediction": "b", "references": ["a"]}', "the key 'prediction' twice"),
    ('{"prediction": "a", "references": ["a"], "x": NaN}', "the number NaN, which is not finite"),
    (b'{"prediction": "\xe9", "references": ["a"]}', "expected UTF-8; got byte 0xe9 at byte 17"),
  ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, complaint):
  line = line if isinstance(line, bytes) else line.encode()
  path = write(tmp_path, json.dumps(GOOD | {"id": "1"}).encode() + b"\n\n" + line + b"\n")
  with pytest.raises(ValueError, match=re.escape(complaint)) as error:
    score_file(path)
  message = str(error.value)
  assert message.startswith(f"{path}:3: ")
  assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
  path = write(tmp_path, content)
  with pytest.raises(ValueError, match="got an empty file") as error:
    score_file(path)
  assert str(error.value).startswith(f"{path}:1: ")


def test_a_missing_file_raises_the_system_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    score_file(tmp_path / "none.jsonl")
