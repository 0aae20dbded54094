"""From generated ids to predictions."""

import json

import jax.numpy as jnp
import numpy as np

from afspl_jax.evaluation.generate import generated_texts
from afspl_jax.evaluation.predictions import Prediction, count_unknown_tokens, write_predictions
from afspl_jax.models.decoding import Decoded
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer


def test_ids_beyond_the_tokenizer_are_counted_with_the_text_that_lacks_them(tmp_path):
  tokenizer = Tokenizer(TINY / "t5")
  rows, mask = tokenizer.tokenize(["a red disc", "two"], 9)
  (first, second), size = (row[seen][:-1] for row, seen in zip(rows, mask, strict=True)), 12
  ids = np.zeros((3, size), np.int32)  # the last row is padding of the batch
  ids[0, : len(first) + 4] = [166, *first, 255, 167, tokenizer.eos_id]
  ids[1, : len(second) + 1] = [*second, tokenizer.eos_id]
  ids[1, -2:] = 200  # after the end
  ids[2] = 200
  decoded = Decoded(
    jnp.asarray(ids), jnp.zeros(3), jnp.full((3, 4), 0.25), jnp.asarray([[0.0, 1.0]] * 3)
  )
  found = generated_texts(decoded, 2, tokenizer)
  assert [one.text for one in found] == ["a red disc", "two"]
  assert [one.unknown_tokens for one in found] == [3, 0]
  predictions = [Prediction("x", one.text, ("a",), "", *one[1:]) for one in found]
  assert count_unknown_tokens(predictions) == {"unknown_tokens": 3.0}
  assert count_unknown_tokens(predictions[1:]) == {}
  write_predictions(predictions, tmp_path / "p.jsonl")
  lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
  assert [line.get("unknown_tokens") for line in lines] == [3, None]
