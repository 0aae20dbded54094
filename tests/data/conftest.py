"""Splits of the drawn world, through a real CLIP."""

import pytest

from afspl_jax.config.experiment import Data
from afspl_jax.data.batches import Split
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.data.sources import open_source
from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer


@pytest.fixture(scope="module")
def source(shapes_dir):
  return open_source(Data(dir=str(shapes_dir)), "train")


@pytest.fixture(scope="module")
def make_split(source, tiny_checkpoints, tmp_path_factory):
  """Makes splits of `source` with one encoder; takes what Split and Data take."""
  folder, cache = tiny_checkpoints.clip, tmp_path_factory.mktemp("cache")
  parts = ImageProcessor(folder), Tokenizer(folder), weights.fingerprint(folder)
  encoder = FeatureEncoder(weights.load_vision_encoder(folder), *parts, cache)

  def make(contrast=False, **data) -> Split:
    lengths = {"instruction_length": 12, "target_length": 20} | data
    tokenizer = Tokenizer(tiny_checkpoints.t5)
    return Split(source, encoder, tokenizer, Data(**lengths), contrast=contrast)

  return make
