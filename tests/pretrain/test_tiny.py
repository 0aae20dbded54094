"""The shipped CLIP and T5 are those of the script, with the scores on their card."""

import json

import numpy as np
import pytest

from afspl_jax.data.shapes.scene import Look
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.huggingface.weights import load_language_model, load_vision_encoder
from pretrain import clip, t5
from pretrain.card import measure
from pretrain.clip import LOOK_WORDS, describe_look
from pretrain.corpus import Corpus, pretraining_scene
from pretrain.tokenizers import save_clip_tokenizer, save_t5_tokenizer


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_each_model_is_at_most_eight_megabytes(kind):
  assert sum(file.stat().st_size for file in (TINY / kind).iterdir()) <= 8_000_000


def test_the_shipped_tokenizers_equal_those_of_the_script(tmp_path):
  save_t5_tokenizer(tmp_path / "t5")
  save_clip_tokenizer(tmp_path / "clip", (*LOOK_WORDS, "image"))
  for kind in ("t5", "clip"):
    made, shipped = Tokenizer(tmp_path / kind), Tokenizer(TINY / kind)
    assert made.vocabulary == shipped.vocabulary
    texts = ["a dark image : two small azure hoops .", "Zebra 12"]
    np.testing.assert_array_equal(made.tokenize(texts, 40)[0], shipped.tokenize(texts, 40)[0])


def test_the_shipped_models_have_the_scores_on_their_card():
  stated = json.loads((TINY / "scores.json").read_text())
  for name, value in measure(TINY).items():
    assert value == pytest.approx(stated[name], abs=0.01), name
  assert stated["clip_image_to_text_recall_at_1_of_512"] > 100 / 512


def test_the_corpus_has_the_tokenizers_ids_and_follows_from_its_seed():
  tokenizer = Tokenizer(TINY / "t5")
  corpus = Corpus(tokenizer.vocabulary)
  one, same, other = (corpus.batch(np.random.default_rng(seed), 4) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one.targets, same.targets)
  assert (one.targets != other.targets).any()
  for text in tokenizer.decode(one.targets):
    ids = corpus.ids(text)
    np.testing.assert_array_equal([*ids, 1], tokenizer.tokenize([text], len(ids) + 1)[0][0])


def test_pretraining_scenes_are_in_no_split_of_the_sites():
  rng = np.random.default_rng(5)
  assert {pretraining_scene(rng).split for _ in range(50)} == {"pretrain"}


def test_a_look_is_described_by_its_unusual_properties():
  rng = np.random.default_rng(0)
  texts = {describe_look(Look(80.0, (0.0, 0.0, 20.0), 11.0), rng) for _ in range(20)}
  assert texts == {"", "a dark bluish grainy image : "}
  assert {describe_look(Look(120.0, (0.0, 0.0, 0.0), 7.0), rng) for _ in range(20)} == {""}


def test_pretraining_writes_checkpoints_that_load_and_is_deterministic(tmp_path, monkeypatch):
  monkeypatch.setattr(clip, "IMAGES", 40)
  monkeypatch.setattr(clip, "BATCH", 8)
  monkeypatch.setattr(t5, "BATCH", 4)
  losses = [
    (clip.pretrain(tmp_path / name / "clip", 2, 0), t5.pretrain(tmp_path / name / "t5", 2, 0))
    for name in ("one", "same")
  ]
  assert losses[0] == losses[1] and np.isfinite(losses[0]).all()
  for kind, load in (("clip", load_vision_encoder), ("t5", load_language_model)):
    load(tmp_path / "one" / kind)
    files = [tmp_path / name / kind / "model.safetensors" for name in ("one", "same")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads((files[0].parent / "config.json").read_text()) == json.loads(
      (TINY / kind / "config.json").read_text()
    )
