"""Captions and answers of a trained model, on a run whose predictions are known."""

import json
import shutil
import subprocess
import sys

import jax
import pytest

from afspl_jax.config.experiment import Data
from afspl_jax.data.features import FeatureEncoder
from afspl_jax.data.sources import open_source
from afspl_jax.errors import UserError
from afspl_jax.models.huggingface import weights
from afspl_jax.runs import frozen
from afspl_jax.runs.scoring.rescore import EvaluationRequest, evaluate_run
from afspl_jax.runs.trained import finished_run, model, trained_prompter
from afspl_jax.runs.trained.model import ImageQuestion, Model
from afspl_jax.runs.trained.trained_prompter import open_trained_prompter
from afspl_jax.training.mesh import make_mesh

SITE = "elm"


@pytest.fixture(scope="module")
def run(rich):
  return rich


@pytest.fixture(scope="module")
def opened(run):
  return open_trained_prompter(run.path)


@pytest.fixture(scope="module")
def loaded(opened):
  return Model(opened, batch_size=4)


@pytest.fixture(scope="module")
def asked(run, shapes_dir):
  """The test split as images and questions."""
  source = open_source(Data(dir=str(shapes_dir)), "test")
  return [
    ImageQuestion(source.load_image(example.image), example.question)
    for example in run.setup.splits["test"].examples
  ]


def lines_of(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_model_reproduces_the_predictions_of_its_run(run, loaded, asked):
  lines = lines_of(run.path / "predictions" / "test.jsonl")
  found = loaded.predict(asked)
  assert [found_text.text for found_text in found] == [line["prediction"] for line in lines]
  for found_text, line in zip(found, lines, strict=True):
    assert found_text.fusion == pytest.approx(line["fusion"], abs=2e-4)
    assert found_text.prompts == pytest.approx(
      {int(k): w for k, w in line["prompts"].items()}, abs=2e-4
    )
  assert loaded.round == 3 and loaded.site == ""


def test_a_text_does_not_depend_on_the_batch_or_the_devices(loaded, opened, asked, monkeypatch):
  some = asked[:6]
  together = loaded.predict(some)
  assert [loaded.predict([one])[0] for one in some] == together
  assert loaded.predict(some[::-1]) == together[::-1]
  monkeypatch.setattr(model, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
  alone = Model(opened, batch_size=1)
  assert (alone.batch_size, loaded.batch_size) == (1, 4)
  assert [found_text.text for found_text in alone.predict(some)] == [
    found_text.text for found_text in together
  ]


def test_captions_and_answers_are_texts(loaded, asked, tmp_path):
  image, question = next(one for one in asked if one.question)
  image.save(tmp_path / "a.png")
  (text,) = loaded.caption([str(tmp_path / "a.png")])
  assert [text] == loaded.caption([image]) and loaded.caption([]) == []
  assert loaded.answer(tmp_path / "a.png", question) == loaded.answer(image, question)
  with pytest.raises(UserError, match="expected some words"):
    loaded.answer(image, " ")
  (tmp_path / "b.png").write_text("no image")
  with pytest.raises(UserError, match=r"b\.png: expected an image"):
    loaded.caption([tmp_path / "b.png"])
  with pytest.warns(UserWarning, match="cut after 16 tokens"):
    loaded.answer(image, "how many " * 9 + "?")


def test_a_repeated_question_is_encoded_once(loaded, asked, monkeypatch):
  encoded, directions = [], FeatureEncoder.directions

  def count(encoder, texts, **options):
    encoded.append(list(texts))
    return directions(encoder, texts, **options)

  monkeypatch.setattr(FeatureEncoder, "directions", count)
  images = [one.image for one in asked[:9]]
  fresh = [loaded.predict([ImageQuestion(image, "what is it ?")])[0] for image in images]
  assert encoded == [["what is it ?"]]
  described = loaded.caption(images)  # three batches
  assert encoded[1:] == [[loaded.config.data.caption_instruction]]
  assert loaded.predict([ImageQuestion(image, "what is it ?") for image in images]) == fresh
  assert loaded.caption(images) == described and len(encoded) == 4


def test_a_site_uses_its_local_prompt(run, asked):
  rows = run.setup.clients["test"][SITE].tolist()
  personal = lines_of(run.path / "predictions" / "test_personal.jsonl")
  ids = {line["id"]: line for line in personal}
  wanted = [ids[run.setup.splits["test"].examples[row].id] for row in rows]
  mine = open_trained_prompter(run.path, site=SITE)
  found = Model(mine, batch_size=4).predict([asked[row] for row in rows])
  assert [found_text.text for found_text in found] == [line["prediction"] for line in wanted]
  assert all(found_text.fusion["local"] > 0 for found_text in found)


def test_decoding_settings_can_be_changed(run, asked):
  short = model.load(run.path, batch_size=4, max_tokens=2, beams=2)
  assert all(len(text.split()) <= 2 for text in short.caption([one.image for one in asked[:4]]))
  with pytest.raises(UserError, match=r"eval\.beam: no such field"):
    model.load(run.path, beam=2)
  with pytest.raises(UserError, match=r"eval\.beams: expected at least 1"):
    model.load(run.path, beams=0)
  with pytest.raises(UserError, match="batch_size"):
    model.load(run.path, batch_size=0)


def test_a_missing_part_of_a_run_is_one_clear_message(run, tmp_path):
  for options, wanted in (
    ({"round": 1}, "expected a checkpoint of round 1; got rounds 2, 3"),
    ({"site": "zoe"}, "expected the local prompt of 'zoe' up to round 3; got that of alder"),
  ):
    with pytest.raises(UserError, match=wanted):
      open_trained_prompter(run.path, **options)
  with pytest.raises(UserError, match="expected the folder of a run that started"):
    open_trained_prompter(tmp_path)
  site = tmp_path / "site"
  shutil.copytree(run.path, site, ignore=shutil.ignore_patterns("checkpoints"))
  with pytest.raises(UserError, match="get a file of `afspl export`"):
    open_trained_prompter(site)
  text = (site / "config.json").read_text()
  (site / "config.json").write_text(text.replace('"beams"', '"beens"'))
  with pytest.raises(UserError, match=r"eval.beens: no such field.*version that made the run"):
    open_trained_prompter(site)


def test_a_missing_round_is_reported_before_models_are_loaded(run, monkeypatch):
  monkeypatch.setattr(
    trained_prompter, "find_backbones", lambda *args: pytest.fail("searched for models")
  )
  with pytest.raises(UserError, match="expected a checkpoint of round 1"):
    open_trained_prompter(run.path, round=1)


def test_backbones_are_hashed_once(run, monkeypatch):
  hashed = []

  def count(folder):
    hashed.append(folder.name)
    return weights.fingerprint(folder)

  monkeypatch.setattr(finished_run, "fingerprint", count)
  monkeypatch.setattr(frozen, "fingerprint", count)
  found = open_trained_prompter(run.path)
  assert (
    sorted(hashed) == ["clip", "t5"] and found.pair.fingerprints == run.setup.facts["backbones"]
  )
  evaluate_run(run.path, EvaluationRequest(examples=1))
  assert sorted(hashed) == ["clip", "clip", "t5", "t5"]


def test_other_backbones_are_reported_with_both_hashes(run, tmp_path):
  other = tmp_path / "clip"
  shutil.copytree(run.config.backbone.clip, other)
  config = json.loads((other / "preprocessor_config.json").read_text())
  (other / "preprocessor_config.json").write_text(json.dumps(config | {"do_resize": False}))
  wanted = run.setup.facts["backbones"]["clip"]
  with pytest.raises(UserError, match=f"expected the clip of the run, with hash {wanted}; got "):
    open_trained_prompter(run.path, folders={"clip": str(other)})
  nowhere = {"clip": str(tmp_path / "no"), "t5": str(tmp_path / "neither")}
  with pytest.raises(UserError) as error:  # both are named at once
    open_trained_prompter(run.path, folders=nowhere)
  assert f"--clip=FOLDER\n  The run used the one with hash {wanted}" in str(error.value)
  assert "--t5=FOLDER" in str(error.value)


def test_importing_the_package_is_light():
  code = "import sys, afspl_jax; assert callable(afspl_jax.load); print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout == "False\n"
