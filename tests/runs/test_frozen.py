"""The frozen networks of a run, and what hosts compare of them."""

import json

import pytest

from afspl_jax.config.experiment import Experiment
from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.runs.frozen import load_pair


def test_libraries_that_make_other_ids_or_pixels_of_the_same_files_are_noticed(monkeypatch):
  pair = load_pair(Experiment(), {name: TINY / name for name in ("clip", "t5")})
  usual = pair.processing()
  assert len(usual) == 16 and pair.processing() == usual
  tokenize, crop = Tokenizer.tokenize, ImageProcessor.crop
  for kind in (pair.tokenizer, pair.encoder._tokenizer):

    def other(self, texts, length, kind=kind):
      read = [text.replace("photo", "foto") for text in texts] if self is kind else texts
      return tokenize(self, read, length)

    with monkeypatch.context() as patch:
      patch.setattr(Tokenizer, "tokenize", other)
      assert pair.processing() != usual
  with monkeypatch.context() as patch:
    patch.setattr(ImageProcessor, "crop", lambda self, image: crop(self, image) ^ 1)
    assert pair.processing() != usual
  assert pair.processing() == usual


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
  folder = tmp_path / "t5"
  folder.mkdir()
  for name in ("config.json", "model.safetensors"):
    (folder / name).write_bytes((TINY / "t5" / name).read_bytes())
  for name in ("tokenizer.json", "vocab.json", "merges.txt"):
    (folder / name).write_bytes((TINY / "clip" / name).read_bytes())
  end = "<|endoftext|>"
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  with pytest.raises(UserError, match="t5: expected a tokenizer with ids below vocab_size"):
    load_pair(Experiment(), {"clip": TINY / "clip", "t5": folder})
