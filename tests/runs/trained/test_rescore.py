"""Scores of a run again: as it was scored, and otherwise."""

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
from afspl_jax.evaluation import java_scores
from afspl_jax.evaluation.generate import Prediction, spread
from afspl_jax.evaluation.metrics.dispersion import Dispersion
from afspl_jax.evaluation.metrics.retrieval import recall_at_k
from afspl_jax.evaluation.scores import BLEU, by_client, java_measures, measure
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.reporting.score_table import table
from afspl_jax.runs.trained import rescore
from afspl_jax.runs.trained.rescore import Request, evaluate, save


@pytest.fixture(scope="module")
def run(rich):
  return rich


@pytest.fixture(scope="module")
def found(run):
  """The test split as it was scored after the last round, with what CLIP says."""
  return evaluate(run.path, Request(more=("clipscore", "retrieval")))


def logged(line):
  return {name: line[name] for name in (*BLEU, "cider", "rouge_l", "vqa_accuracy", "exact_match")}


def values(found):
  return {name: score["value"] for name, score in found.summary["scores"].items()}


def test_the_runs_own_settings_give_the_numbers_that_were_logged_to_the_digit(run, found):
  line = run.line("test")
  wanted = logged(line) | {"loss": line["loss"]}
  assert {name: values(found)[name] for name in wanted} == wanted
  predictions = [json.loads(x) for x in (run.path / "predictions" / "test.jsonl").open()]
  assert [p.prediction for p in found.predictions] == [p["prediction"] for p in predictions]
  assert (found.summary["round"], found.summary["prompter"]) == (3, "global")


def test_personal_prompters_and_other_splits_are_those_that_were_logged(run):
  personal = evaluate(run.path, Request(personal=True))
  assert values(personal) == logged(run.line("test_personal"))
  assert len(personal.summary["clients"]) == 8  # not the newcomers
  lines = {line["client"]: line for line in run.lines("sites.jsonl")}
  for client in personal.summary["clients"]:
    assert client["cider"] == lines[client["client"]]["personal_cider"]
    assert client["vqa_accuracy"] == lines[client["client"]]["personal_vqa_accuracy"]


def test_an_older_round_of_the_validation_split_with_other_decoding(run):
  request = Request(split="validation", round=2, examples=5, changes={"max_tokens": 2})
  older = evaluate(run.path, request)
  assert (older.summary["round"], older.summary["examples"]) == (2, 5)
  assert older.summary["decoding"]["max_tokens"] == 2
  assert all(len(p.prediction.split()) <= 2 for p in older.predictions)
  split = run.setup.splits["validation"]
  shared = run.setup.whole(run.checkpoint(2)["ema"])
  assert values(older)["loss"] == run.setup.evaluator.loss(shared, split, spread(len(split), 5))


def test_clipscore_and_retrieval_are_those_of_transformers_clip(run, found, shapes_dir):
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
  said = of_texts([f"A photo depicts {found.predictions[i].prediction}" for i in chosen])
  clipscore = 2.5 * np.maximum((said * images).sum(axis=1), 0)
  near = [
    (of_texts([f"A photo depicts {r}" for r in found.predictions[i].references]) @ text).max()
    for i, text in zip(chosen, said, strict=True)
  ]
  harmonic = 2 * clipscore * near / (clipscore + near)
  assert values(found)["clipscore"] == pytest.approx(clipscore.mean(), abs=1e-5)
  assert values(found)["refclipscore"] == pytest.approx(harmonic.mean(), abs=1e-5)
  captions = [split.examples[i].references for i in chosen]
  image_of = np.repeat(np.arange(len(chosen)), [len(group) for group in captions])
  wanted = recall_at_k(images, of_texts([text for group in captions for text in group]), image_of)
  assert found.summary["retrieval"] == wanted


def said(text, references, question=""):
  return Prediction("x", text, tuple(references), question, {}, {})


def test_every_score_but_the_loss_has_an_interval_around_it(found):
  scores = found.summary["scores"]
  assert "low" not in scores.pop("loss")
  for name, score in scores.items():
    assert score["low"] <= score["value"] <= score["high"], name


def test_clients_means_weigh_each_client_once():
  predictions = [said("no", ["no"], "q")] * 3 + [said("yes", ["no"], "q")]
  predictions.append(said("a dog", ["a dog"]))
  measured = measure(predictions, ["a", "b", "c", "d", "e"])
  lines, over = by_client(measured, ["x", "x", "x", "y", "x"])
  assert lines[0] | {"examples": 4, "vqa_accuracy": 1.0, "rouge_l": 1.0} == lines[0]
  assert lines[1] | {"examples": 1, "vqa_accuracy": 0.0, "rouge_l": None} == lines[1]
  assert measured["vqa_accuracy"].value == 0.75
  assert over["vqa_accuracy"] == Dispersion(2, mean=0.5, sd=0.5, worst=0.0, gini=0.5)
  assert over["rouge_l"].clients == 1


def test_what_was_found_is_written_and_shown(found, tmp_path):
  file = save(found, tmp_path / "e")
  assert json.loads(file.read_text()) == json.loads(json.dumps(found.summary))
  assert len(file.with_suffix(".jsonl").read_text().splitlines()) == len(found.predictions)
  text = table(found.summary)
  for part in ("the global prompter on", "95 % interval", "worst 10 %", "image to text", "elm"):
    assert part in text
  score = found.summary["scores"]["cider"]
  assert f"{score['value']:.3f}  {score['low']:.3f} to {score['high']:.3f}" in text
  (tmp_path / "f").write_text("")
  with pytest.raises(UserError, match="Choose another --out"):
    save(found, tmp_path / "f" / "x")


def test_ways_of_asking_have_files_of_their_own(found):
  requests = [
    Request(),
    Request(personal=True),
    Request(site="a/b"),
    Request(examples=5),
    Request(changes={"beams": 2}),
    Request(split="train"),
    Request(more=("spice",)),
    Request(more=("spice", "meteor")),
  ]
  names = {rescore._name(request, 3) for request in requests}
  assert len(names) == len(requests) and not any("/" in name for name in names)
  assert rescore._name(Request(), 3) == "test_round_0003"
  assert found.name == "test_round_0003_clipscore_retrieval"
  orders = [("spice", "meteor"), ("meteor", "spice", "meteor")]
  assert len({rescore._name(Request(more=more), 3) for more in orders}) == 1


@pytest.fixture
def copy(run, tmp_path):
  """The run's folder with something else in config.json."""

  def make(change):
    folder = tmp_path / "copy"
    ignored = shutil.ignore_patterns("predictions")
    shutil.copytree(run.path, folder, ignore=ignored, dirs_exist_ok=True)
    said = json.loads((folder / "config.json").read_text())
    change(said)
    (folder / "config.json").write_text(json.dumps(said))
    return folder

  return make


def test_other_data_than_the_runs_are_refused(copy):
  folder = copy(lambda said: said["facts"]["data"].update(test="x"))
  with pytest.raises(
    UserError, match="expected the data that the run was trained on; changed: test"
  ):
    evaluate(folder, Request())
  folder = copy(lambda said: said["facts"].update(partition="x"))
  with pytest.raises(UserError, match="changed: partition"):
    evaluate(folder, Request(split="validation"))


def test_what_cannot_be_asked_of_a_run_is_one_clear_message(run, copy):
  with pytest.raises(UserError, match=r"--site: expected one of alder, .*; got 'zoe'"):
    evaluate(run.path, Request(site="zoe"))
  folder = copy(lambda said: said["facts"]["data"].pop("train"))
  with pytest.raises(UserError, match="the prompts of this one lie at its sites"):
    evaluate(folder, Request(personal=True))
  folder = copy(lambda said: said["config"]["fed"].update(share="none"))
  with pytest.raises(UserError, match="add --personal"):
    evaluate(folder, Request())


def test_what_a_run_has_not_got_is_said_before_anything_is_loaded(run, copy, monkeypatch):
  monkeypatch.setattr(rescore, "find_pair", lambda *args: pytest.fail("looks for models"))
  with pytest.raises(UserError, match="expected a checkpoint of round 1; got rounds 2, 3"):
    evaluate(run.path, Request(round=1))
  for gone, kept in (
    (("train",), "test or validation; got train"),  # a server's run, whose sites are elsewhere
    (("validation", "test"), "train; got test"),  # a site's
  ):
    folder = copy(lambda said, gone=gone: [said["facts"]["data"].pop(split) for split in gone])
    with pytest.raises(UserError, match=f"expected a split that this run read, {kept}"):
      evaluate(folder, Request(split=kept.split()[-1]))
  shutil.rmtree(folder / "checkpoints")
  with pytest.raises(UserError, match="A site keeps none of what the server averages"):
    evaluate(folder, Request())


def test_scores_of_java_programs_that_are_not_installed_say_what_to_install(run, monkeypatch):
  monkeypatch.setattr(java_scores.shutil, "which", lambda name: None)
  monkeypatch.setattr(java_scores.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"afspl-jax\[java\].*a Java runtime"):
    evaluate(run.path, Request(more=("meteor",)))
  assert java_measures([said("no", ["no"], "q")], ["a"], ("meteor", "spice")) == {}


def test_spice_is_not_asked_where_it_would_download_its_parser(tmp_path, monkeypatch):
  package = SimpleNamespace(submodule_search_locations=[str(tmp_path)], origin=None)
  monkeypatch.setattr(java_scores.shutil, "which", lambda name: "java")
  monkeypatch.setattr(java_scores.importlib.util, "find_spec", lambda name: package)
  java_scores.check("meteor")
  jars = [
    tmp_path / "spice" / "lib" / f"stanford-corenlp-3.6.0{end}.jar" for end in ("", "-models")
  ]
  jars[0].parent.mkdir(parents=True)
  for jar in jars:
    with pytest.raises(UserError, match=re.escape(f"{jars[1]} (of Stanford's")):
      java_scores.spice(["a"], [["a"]])
    jar.touch()
  java_scores.check("spice")


def test_meteor_is_the_evaluators():
  try:
    java_scores.check("meteor")
  except UserError as missing:
    pytest.skip(str(missing))
  same, other = said("a brown dog runs", ["a brown dog runs"]), said("x y", ["a cat sleeps"])
  (score,) = java_measures([same, other], ["a", "b"], ("meteor",)).values()
  assert 0.3 < score.value < 1 and score.interval is None
