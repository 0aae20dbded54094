"""A text tower and the tokenizer beside it agree on where a text ends."""

import json
import shutil

import numpy as np
import pytest

from afspl_jax.data.features import FeatureEncoder
from afspl_jax.errors import UserError
from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer


def encoder(folder, cache):
  parts = ImageProcessor(folder), Tokenizer(folder), weights.fingerprint(folder)
  return FeatureEncoder(weights.load_vision_encoder(folder), *parts, cache)


@pytest.mark.parametrize(
  ("eos", "expected"),
  [
    (5, r"expected a tokenizer with eos_token_id 5, .*; got 498"),
    (None, r"expected an eos_token_id .* below vocab_size, 499, .*; got 49407"),
    (498, ""),
    (2, ""),  # as OpenAI's files have it: the highest id
  ],
)
def test_a_text_tower_that_pools_at_another_token_is_refused(tmp_path, eos, expected):
  folder = shutil.copytree(TINY / "clip", tmp_path / "clip")
  config = json.loads((folder / "config.json").read_text())
  config["text_config"]["eos_token_id"] = eos
  (folder / "config.json").write_text(json.dumps(config))
  if expected:
    with pytest.raises(UserError, match=expected):
      encoder(folder, tmp_path)
  else:
    texts, usual = ["a red disc", "two"], encoder(TINY / "clip", tmp_path)
    got = encoder(folder, tmp_path).texts(texts, keep=False)
    np.testing.assert_array_equal(got, usual.texts(texts, keep=False))
