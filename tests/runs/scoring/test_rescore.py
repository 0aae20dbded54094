"""Checkpoints scored again, with the same and with other settings."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from afspl_jax.config.experiment import Data
from afspl_jax.data.sources import open_source
from afspl_jax.errors import UserError
from afspl_jax.evaluation.extra_scores import java_scores
from afspl_jax.evaluation.generate import evenly_spread
from afspl_jax.evaluation.metrics import java_metrics
from afspl_jax.evaluation.metrics.dispersion import Dispersion
from afspl_jax.evaluation.metrics.retrieval import recall_at_k
from afspl_jax.evaluation.predictions import Prediction
from afspl_jax.evaluation.scores import BLEU, score_with_intervals, scores_by_client
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.reporting.score_table import format_evaluation
from afspl_jax.runs.scoring import rescore
from afspl_jax.runs.scoring.rescore import EvaluationRequest, evaluate_run, write_evaluation


@pytest.fixture(scope="module")
def run(rich):
  return rich


@pytest.fixture(scope="module")
def found(run):
  """The test split as it was scored after the last round, with the scores of CLIP."""
  return evaluate_run(run.path, EvaluationRequest(more=("clipscore", "retrieval")))


def logged(line):
  return {name: line[name] for name in (*BLEU, "cider", "rouge_l", "exact_match")}


def values(found):
  return {name: score["value"] for name, score in found.summary["scores"].items()}


def test_the_same_settings_give_the_logged_scores_to_the_last_digit(run, found):
  line = run.line("test")
  wanted = logged(line) | {"loss": line["loss"]}
  assert {name: values(found)[name] for name in wanted} == wanted
  text = (run.path / "predictions" / "test.jsonl").read_text()
  predictions = [json.loads(line) for line in text.splitlines()]
  assert [p.prediction for p in found.predictions] == [p["prediction"] for p in predictions]
  assert (found.summary["round"], found.summary["prompter"]) == (3, "global")


def test_scores_of_personalised_models_are_the_logged_ones(run):
  personal = evaluate_run(run.path, EvaluationRequest(personalised=True))
  assert values(personal) == logged(run.line("test_personal"))
  assert len(personal.summary["clients"]) == 8  # not the newcomers
  lines = {line["client"]: line for line in run.lines("sites.jsonl")}
  for client in personal.summary["clients"]:
    assert client["cider"] == lines[client["client"]]["personal_cider"]
    assert client["exact_match"] == lines[client["client"]]["personal_exact_match"]


def test_an_older_round_can_be_scored_with_other_decoding_settings(run):
  request = EvaluationRequest(split="validation", round=2, examples=5, changes={"max_tokens": 2})
  older = evaluate_run(run.path, request)
  assert (older.summary["round"], older.summary["examples"]) == (2, 5)
  assert older.summary["decoding"]["max_tokens"] == 2
  assert all(len(p.prediction.split()) <= 2 for p in older.predictions)
  split = run.setup.splits["validation"]
  shared = run.setup.global_params(run.checkpoint(2)["ema"])
  assert values(older)["loss"] == run.setup.evaluator.loss(
    shared, split, evenly_spread(len(split), 5)
  )


def test_clipscore_and_retrieval_equal_transformers_clip(run, found, shapes_dir):
  folder = run.config.backbone.clip
  clip, tokenizer = CLIPModel.from_pretrained(folder), Tokenizer(folder)
  split, source = run.setup.splits["test"], open_source(Data(dir=str(shapes_dir)), "test")

  def of_texts(texts):
    ids, mask = tokenizer.tokenize(texts, 77)
    with torch.no_grad():
      out = clip.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask)).pooler_output
    return (out / out.norm(dim=-1, keepdim=True)).numpy()

  def of_images(keys):
    pixels = ImageProcessor(folder)([source.load_image(key) for key in keys])
    with torch.no_grad():
      out = clip.get_image_features(torch.from_numpy(np.moveaxis(pixels, -1, 1))).pooler_output
    return (out / out.norm(dim=-1, keepdim=True)).numpy()

  chosen = [i for i, p in enumerate(found.predictions) if not p.question]
  images = of_images([split.examples[i].image for i in chosen])
  predicted = of_texts([f"A photo depicts {found.predictions[i].prediction}" for i in chosen])
  clipscore = 2.5 * np.maximum((predicted * images).sum(axis=1), 0)
  near = [
    (of_texts([f"A photo depicts {r}" for r in found.predictions[i].references]) @ text).max()
    for i, text in zip(chosen, predicted, strict=True)
  ]
  harmonic = 2 * clipscore * near / (clipscore + near)
  assert values(found)["clipscore"] == pytest.approx(clipscore.mean(), abs=1e-5)
  assert values(found)["refclipscore"] == pytest.approx(harmonic.mean(), abs=1e-5)
  captions = [split.examples[i].references for i in chosen]
  image_of = np.repeat(np.arange(len(chosen)), [len(group) for group in captions])
  wanted = recall_at_k(images, of_texts([text for group in captions for text in group]), image_of)
  assert found.summary["retrieval"] == wanted


def prediction(text, references, question=""):
  return Prediction("x", text, tuple(references), question, {}, {})


def test_every_score_but_the_loss_has_an_interval_around_it(found):
  scores = found.summary["scores"]
  assert "low" not in scores.pop("loss")
  for name, score in scores.items():
    assert score["low"] <= score["value"] <= score["high"], name


def test_dispersion_counts_each_client_once():
  predictions = [prediction("no", ["no"], "q")] * 3 + [prediction("yes", ["no"], "q")]
  predictions.append(prediction("a dog", ["a dog"]))
  measured = score_with_intervals(predictions, ["a", "b", "c", "d", "e"])
  lines, over = scores_by_client(measured, ["x", "x", "x", "y", "x"])
  assert lines[0] | {"examples": 4, "exact_match": 1.0, "rouge_l": 1.0} == lines[0]
  assert lines[1] | {"examples": 1, "exact_match": 0.0, "rouge_l": None} == lines[1]
  assert measured["exact_match"].value == 0.75
  assert over["exact_match"] == Dispersion(2, mean=0.5, sd=0.5, worst=0.0, gini=0.5)
  assert over["rouge_l"].clients == 1


def test_an_evaluation_is_written_and_formatted(found, tmp_path):
  file = write_evaluation(found, tmp_path / "e")
  assert json.loads(file.read_text()) == json.loads(json.dumps(found.summary))
  assert len(file.with_suffix(".jsonl").read_text().splitlines()) == len(found.predictions)
  text = format_evaluation(found.summary)
  for part in ("the global model on", "95 % interval", "worst 10 %", "image to text", "elm"):
    assert part in text
  score = found.summary["scores"]["cider"]
  assert f"{score['value']:.3f}  {score['low']:.3f} to {score['high']:.3f}" in text
  (tmp_path / "f").write_text("")
  with pytest.raises(UserError, match="Choose another --out"):
    write_evaluation(found, tmp_path / "f" / "x")


def test_different_requests_have_different_files(found):
  requests = [
    EvaluationRequest(),
    EvaluationRequest(personalised=True),
    EvaluationRequest(site="a/b"),
    EvaluationRequest(examples=5),
    EvaluationRequest(changes={"beams": 2}),
    EvaluationRequest(split="train"),
    EvaluationRequest(more=("spice",)),
    EvaluationRequest(more=("spice", "meteor")),
  ]
  names = {request.file_name(3) for request in requests}
  assert len(names) == len(requests) and not any("/" in name for name in names)
  assert EvaluationRequest().file_name(3) == "test_round_0003"
  assert found.name == "test_round_0003_clipscore_retrieval"
  orders = [("spice", "meteor"), ("meteor", "spice", "meteor")]
  assert len({EvaluationRequest(more=more).file_name(3) for more in orders}) == 1


@pytest.fixture
def copy(run, tmp_path):
  """The run folder with a changed config.json."""

  def make(change):
    folder = tmp_path / "copy"
    ignored = shutil.ignore_patterns("predictions")
    shutil.copytree(run.path, folder, ignore=ignored, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder

  return make


def test_changed_data_are_rejected(copy):
  folder = copy(lambda config: config["facts"]["data"].update(test="x"))
  with pytest.raises(
    UserError, match="expected the data that the run was trained on; changed: test"
  ):
    evaluate_run(folder, EvaluationRequest())
  folder = copy(lambda config: config["facts"].update(partition="x"))
  with pytest.raises(UserError, match="changed: partition"):
    evaluate_run(folder, EvaluationRequest(split="validation"))


def test_an_unsupported_request_is_one_clear_message(run, copy):
  with pytest.raises(UserError, match=r"--site: expected one of alder, .*; got 'zoe'"):
    evaluate_run(run.path, EvaluationRequest(site="zoe"))
  folder = copy(lambda config: config["facts"]["data"].pop("train"))
  with pytest.raises(UserError, match="the local prompts of this run are at its sites"):
    evaluate_run(folder, EvaluationRequest(personalised=True))
  folder = copy(lambda config: config["config"]["fed"].update(share="none"))
  with pytest.raises(UserError, match="Add --personal"):
    evaluate_run(folder, EvaluationRequest())


def test_a_missing_round_or_split_is_reported_before_loading(run, copy, monkeypatch):
  monkeypatch.setattr(rescore, "find_backbones", lambda *args: pytest.fail("searched for models"))
  with pytest.raises(UserError, match="expected a checkpoint of round 1; got rounds 2, 3"):
    evaluate_run(run.path, EvaluationRequest(round=1))
  for gone, kept in (
    (("train",), "test or validation; got train"),  # a server whose sites are elsewhere
    (("validation", "test"), "train; got test"),  # a site
  ):
    folder = copy(lambda config, gone=gone: [config["facts"]["data"].pop(split) for split in gone])
    with pytest.raises(UserError, match=f"expected a split that this run read, {kept}"):
      evaluate_run(folder, EvaluationRequest(split=kept.split()[-1]))
  shutil.rmtree(folder / "checkpoints")
  with pytest.raises(UserError, match="A site has no checkpoints of the global model"):
    evaluate_run(folder, EvaluationRequest())


def test_a_missing_java_program_names_what_to_install(run, monkeypatch):
  monkeypatch.setattr(java_metrics.shutil, "which", lambda name: None)
  monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"afspl-jax\[java\].*a Java runtime"):
    evaluate_run(run.path, EvaluationRequest(more=("meteor",)))
  assert java_scores([prediction("no", ["no"], "q")], ["a"], ("meteor", "spice")) == {}


def test_spice_never_downloads_its_parser(tmp_path, monkeypatch):
  package = SimpleNamespace(submodule_search_locations=[str(tmp_path)], origin=None)
  monkeypatch.setattr(java_metrics.shutil, "which", lambda name: "java")
  monkeypatch.setattr(java_metrics.importlib.util, "find_spec", lambda name: package)
  java_metrics.require_java_metric("meteor")
  jars = [
    tmp_path / "spice" / "lib" / f"stanford-corenlp-3.6.0{end}.jar" for end in ("", "-models")
  ]
  jars[0].parent.mkdir(parents=True)
  for jar in jars:
    with pytest.raises(UserError, match=re.escape(f"{jars[1]} (of Stanford's")):
      java_metrics.spice(["a"], [["a"]])
    jar.touch()
  java_metrics.require_java_metric("spice")


def test_meteor_is_computed_by_the_evaluator():
  try:
    java_metrics.require_java_metric("meteor")
  except UserError as missing:
    pytest.skip(str(missing))
  same, other = (
    prediction("a brown dog runs", ["a brown dog runs"]),
    prediction("x y", ["a cat sleeps"]),
  )
  (score,) = java_scores([same, other], ["a", "b"], ("meteor",)).values()
  assert 0.3 < score.value < 1 and score.interval is None
