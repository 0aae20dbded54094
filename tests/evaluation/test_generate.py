"""From generated ids to predictions."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.config.experiment import Eval
from afspl_jax.data.batches import Split
from afspl_jax.evaluation import generate
from afspl_jax.evaluation.generate import Evaluator, generated_texts
from afspl_jax.evaluation.predictions import Prediction, count_unknown_tokens, write_predictions
from afspl_jax.models.captioner import Captioner
from afspl_jax.models.decoding import Decoded
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.types import Batch, Example


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


@pytest.fixture
def generated(monkeypatch, one_device):
  """Predicts with a decoder that says a row's input; gives predictions and decoded rows."""
  nothing = object.__new__(Captioner)
  tokenizer, decoded_rows = Tokenizer(TINY / "t5"), []
  words = ("red", "blue", "green", "two")
  says = [tokenizer.tokenize([word], 2)[0][0] for word in words]

  class Examples(Split):
    def __init__(self, inputs, lengths):
      self.inputs = lambda rows, see_image=True: np.asarray(inputs)[rows] * see_image
      self.target_lengths = lambda rows: np.asarray(lengths)[rows]
      self.examples = [Example(str(i), str(i), (f"text {i}",)) for i in range(len(inputs))]

    def batch(self, rows, size, reference=None, personal=False):
      filled = np.resize(rows, size).astype(np.float32)
      return Batch(*[filled] * 9)

  def predict(inputs, lengths, rows, size, see_image=True):
    decoded_rows.clear()
    split = Examples(inputs, lengths)

    def decode(params, frozen, batch):
      decoded_rows.append(batch.text.astype(int).tolist())
      ids = np.stack([says[inputs[row]] for row in decoded_rows[-1]])
      return Decoded(jnp.asarray(ids), jnp.zeros(size), jnp.ones((size, 4)), jnp.ones((size, 1)))

    monkeypatch.setattr(generate, "make_decoder", lambda *_: decode)
    monkeypatch.setattr(generate, "make_eval_step", lambda *_: None)
    evaluator = Evaluator(nothing, {}, tokenizer, Eval(batch_size=size), one_device)
    return evaluator.predict({}, split, rows, see_image=see_image), decoded_rows

  return predict, words


def test_examples_with_equal_inputs_are_decoded_once_and_all_predicted(generated):
  predict, words = generated
  inputs, rows = [3, 1, 1, 0, 3, 2], [5, 4, 2, 1, 0]
  found, decoded = predict(inputs, [1] * 6, rows, 2)
  assert [p.id for p in found] == [str(row) for row in rows]
  assert [p.prediction for p in found] == [words[inputs[row]] for row in rows]
  assert [p.references for p in found] == [(f"text {row}",) for row in rows]
  assert len(decoded) == 2 and sum(len(set(batch)) for batch in decoded) == 3


def test_texts_of_similar_length_are_decoded_together(generated):
  predict, words = generated
  found, decoded = predict([0, 1, 2, 3], [30, 2, 29, 3], [0, 1, 2, 3], 2)
  assert [sorted(batch) for batch in decoded] == [[1, 3], [0, 2]]
  assert [p.prediction for p in found] == list(words)


def test_without_images_one_example_of_each_instruction_is_decoded(generated):
  predict, _ = generated
  found, decoded = predict([2, 0, 1], [5, 5, 5], [0, 1, 2], 4, see_image=False)
  assert len(decoded) == 1 and len(set(decoded[0])) == 1
  assert len({p.prediction for p in found}) == 1 and [p.id for p in found] == ["0", "1", "2"]
