"""Access to the golden captions: scores and tokens made with pycocoevalcap 1.2 and OpenJDK 17."""

import json
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[4] / "shared" / "data" / "golden_captions"


def _load(name: str):
  path = _FOLDER / name
  if not path.is_file():
    pytest.skip(f"golden captions not found: put {name} into {_FOLDER} to run this test")
  return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_lines() -> list[dict]:
  """297 captions with unusual punctuation: `text` and its `tokens`."""
  return _load("ptb_tokens.json")


@pytest.fixture(scope="session")
def golden_scores() -> dict:
  """126 model captions with their references, tokens and scores; `items` and `corpus`."""
  return _load("coco_fakecap_126.json")


@pytest.fixture(scope="session")
def golden_tokens(golden_scores) -> tuple[list, list]:
  """The predictions' and the references' tokens of `golden_scores`."""
  items = golden_scores["items"]
  return (
    [item["candidate_tokens"] for item in items],
    [item["reference_tokens"] for item in items],
  )
