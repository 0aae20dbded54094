"""Final scores, of a finished run and of prompters made for the test."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tqdm import tqdm

from afspl_jax.config.experiment import to_dict
from afspl_jax.evaluation.scores import TextWithReferences, score_predictions
from afspl_jax.federation.protocol import wire
from afspl_jax.reporting.html.files import read_run
from afspl_jax.reporting.html.page import render_page
from afspl_jax.runs.scoring.final_scores import FinalEvaluation, score_finished_run
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.storage.run_lines import read_lines
from tests.recorded_run import recorded_run, rich_run
from tests.reporting.test_tensorboard import scalars

SILENT = functools.partial(tqdm, disable=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return rich_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_checkpoints, shapes_dir):
  """Every client trains for itself."""
  fields = {"fed.share": "none", "fed.rounds": 2, "fed.clients_per_round": 3}
  fields |= {"data.partition": "task", "data.num_clients": 3, "prompter.fusion": "static"}
  folder = tmp_path_factory.getbasetemp() / "alone"
  return recorded_run(folder, tiny_checkpoints, shapes_dir, **fields)


@pytest.fixture
def evaluated(run, tmp_path, monkeypatch):
  """Makes a final evaluation with other fusion scores, and records its predictions."""
  predict, predicted = run.setup.evaluator.predict, []

  def remember(params, split, rows, *args, **kwargs):
    predicted.append((list(rows), predict(params, split, rows, *args, **kwargs)))
    return predicted[-1][1]

  monkeypatch.setattr(run.setup.evaluator, "predict", remember)

  def make(spread=0.0, bias=(0.0, 0.0, 0.0, 0.0)):
    score = run.setup.shared["fusion"]["score"]
    kernel = np.random.default_rng(0).normal(size=score["kernel"].shape, scale=spread)
    score = {"kernel": kernel.astype(np.float32), "bias": np.asarray(bias, np.float32)}
    shared = run.setup.shared | {"fusion": run.setup.shared["fusion"] | {"score": score}}
    return FinalEvaluation(run.setup, tmp_path / "predictions", shared), predicted

  return make


def texts_of(predictions):
  return [p.prediction for p in predictions]


def by_row(predicted):
  return {
    row: text for rows, found in predicted for row, text in zip(rows, texts_of(found), strict=True)
  }


def shares(predictions):
  return np.array([list(p.fusion.values()) for p in predictions])


def test_mean_fusion_gives_every_sample_the_mean_weights_and_counts_changed_texts(evaluated):
  final, predicted = evaluated(spread=1.0)
  final.test()
  scores = np.log(shares(predicted.pop()[1])[:, :3]).mean(axis=0)
  final, _ = evaluated(spread=50.0, bias=(*(-50 * scores), 0.0))  # spread out, around equal weights
  final.test()
  scores = final.mean_fusion()
  (_, by_global), (_, constant) = predicted
  assert np.ptp(shares(by_global), axis=0)[:3].min() > 0.1  # otherwise there is nothing to replace
  assert np.ptp(shares(constant), axis=0).max() == 0
  np.testing.assert_allclose(shares(constant)[0], shares(by_global).mean(axis=0), atol=2e-4)
  changes = [a != b for a, b in zip(texts_of(by_global), texts_of(constant), strict=True)]
  assert scores["changed"] == np.mean(changes) > 0


def test_mean_fusion_changes_nothing_where_all_samples_have_the_same_weights(evaluated):
  final, predicted = evaluated(bias=(1.0, 0.5, 0.0, 2.0))
  test = final.test()
  scores = final.mean_fusion()
  assert np.ptp(shares(predicted[0][1]), axis=0).max() == 0
  assert scores.pop("changed") == 0
  assert scores == {name: test[name] for name in scores}


def test_with_no_weight_on_local_prompts_personalised_models_equal_the_global_model(evaluated):
  final, predicted = evaluated(spread=5.0, bias=(0.0, 0.0, 0.0, -1e9))
  test = final.test()
  personal = final.personal()
  by_global = by_row(predicted[:1])
  taking_part = by_row(predicted[1:])
  assert taking_part == {row: by_global[row] for row in taking_part}
  assert 0 < len(taking_part) < len(by_global) and personal.keys() <= test.keys()


def test_with_weight_on_local_prompts_personalised_models_differ(evaluated, run):
  final, predicted = evaluated(bias=(0.0, 0.0, 0.0, 9.0))
  final.test()
  final.personal()
  assert shares(predicted[0][1])[:, 3].max() == 0
  assert all(shares(found)[:, 3].min() > 0.9 for _, found in predicted[1:] if found)
  assert by_row(predicted[1:]) != by_row(predicted[:1])
  split, rows = run.setup.splits["test"], range(8)
  personal = [run.setup.trainer.personal(run.setup.shared, client, 3) for client in range(10)]
  prompts = [params["local"]["prompt"] for params in personal]
  assert len({prompt.tobytes() for prompt in prompts}) == 10
  answers = [texts_of(run.setup.evaluator.predict(p, split, rows, True)) for p in personal]
  assert len({tuple(texts) for texts in answers}) > 1


def test_clients_share_the_common_sample_and_newcomers_are_excluded(evaluated, run):
  final, predicted = evaluated(spread=5.0)
  scores = final.personal_common()
  assert len(predicted) == 8 and len({tuple(rows) for rows, _ in predicted}) == 1
  assert len(predicted[0][0]) == run.config.eval.common_examples
  owners = {run.setup.splits["test"].examples[row].site for row in predicted[0][0]}
  assert len(owners) > 5
  assert 0 <= scores["rouge_l"] <= 1


def test_without_image_all_captions_are_equal(run):
  texts = {
    name: {
      p["prediction"] for p in read_lines(run.path / "predictions" / name) if not is_question(p)
    }
    for name in ("test.jsonl", "test_blind.jsonl")
  }
  assert len(texts["test_blind.jsonl"]) == 1 < len(texts["test.jsonl"])


def is_question(prediction):
  return "question" in prediction


def test_weighted_client_means_are_the_overall_mean(run):
  sites = run.lines("sites.jsonl")
  assert [line["client"] for line in sites] == sorted(run.setup.clients["test"])[:-2]
  predictions = read_lines(run.path / "predictions" / "test_personal.jsonl")
  assert sum(line["examples"] for line in sites) == len(predictions)
  theirs = {p["id"] for p in predictions}
  by_global = [p for p in read_lines(run.path / "predictions" / "test.jsonl") if p["id"] in theirs]
  scores = {
    "personal": run.line("test_personal"),
    "global": score_predictions(
      TextWithReferences(p["prediction"], p["references"], p.get("question", "")) for p in by_global
    ),
  }
  for kind, key in ((False, "cider"), (True, "exact_match")):
    mine = [p["id"].split("-")[0] for p in predictions if is_question(p) == kind]
    for prompter, expected in scores.items():
      means = {line["client"]: line[f"{prompter}_{key}"] for line in sites}
      assert {client for client, mean in means.items() if mean is not None} == set(mine)
      assert np.mean([means[client] for client in mine]) == pytest.approx(expected[key])
  assert {line["global_cider"] for line in sites} != {line["personal_cider"] for line in sites}


def test_fusion_weights_are_reported_by_task(run):
  line = run.line("test")
  for kind in ("captions", "questions"):
    weights = [line[f"fusion_{source}_{kind}"] for source in ("global", "visual", "textual")]
    assert sum(weights) == pytest.approx(1, abs=1e-3) and line[f"fusion_local_{kind}"] == 0
  assert line["fusion_sd"] > 0


def test_newcomers_take_no_part_and_have_separate_lines(run):
  names = sorted(run.setup.clients["train"])
  old, new = set(names[:-2]), set(names[-2:])
  assert {line["client"] for line in run.lines("clients.jsonl")} <= old
  kept = {path.parent.name: path.stem for path in (run.path / "clients").rglob("*.safetensors")}
  assert kept.keys() <= old and set(kept.values()) <= {f"round_00000{r}" for r in (1, 2, 3)}
  joined = {(path.parent.name, path.stem) for path in (run.path / "joined").rglob("round_*")}
  assert joined == {(name, f"round_00000{r}") for name in new for r in (0, 1)}
  before, after, without = (run.line(f"newcomer_{x}") for x in ("before", "after", "global"))
  assert before.keys() == after.keys() == without.keys() > {"cider"}
  assert not {line["client"] for line in run.lines("sites.jsonl")} & new


def test_the_moving_average_is_scored(run):
  older, newer = run.checkpoint(2), run.checkpoint(3)
  decay = min(run.config.eval.ema, 1 - 1 / 3)
  for a, p, found in zip(
    *(jax.tree.leaves(tree) for tree in (older["ema"], newer["params"], newer["ema"])), strict=True
  ):
    np.testing.assert_allclose(found, decay * a + (1 - decay) * p, rtol=1e-5, atol=1e-6)
  evaluator, split = run.setup.evaluator, run.setup.splits["test"]
  rows = range(len(split))
  assert (
    evaluator.loss(run.setup.global_params(newer["ema"]), split, rows) == run.line("test")["loss"]
  )
  assert (
    evaluator.loss(run.setup.global_params(newer["params"]), split, rows)
    != run.line("test")["loss"]
  )


def test_report_and_events_show_the_metrics(run):
  found = read_run(run.path)
  html = render_page([found])
  assert found.state == "finished" and f"{run.line('test')['cider']:.3f}" in html
  assert html.count('src="data:image/jpeg;base64,') > 8  # images of its data
  assert "Fusion weights, captions" in html and "Use of the pool" in html
  assert found.places == [{"devices": "4 x cpu"}]
  last = [(line["round"], line["split"]) for line in run.lines("metrics.jsonl")]
  shown = [(step, tag.split("/")[0]) for step, tag, _ in scalars(run.path)]
  assert list(dict.fromkeys(shown)) == last


def without_seconds(lines):
  return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_only_missing_lines_are_added(run, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(run.path, copy)
  text = (copy / "metrics.jsonl").read_text()
  shared = run.checkpoint(3)["ema"]
  with RunFolder.open(copy, to_dict(run.config)) as folder:
    first = score_finished_run(run.setup, folder, shared, SILENT)
  assert first["test"] == run.line("test") and list(first)[-1] == "newcomer_after"
  assert (copy / "metrics.jsonl").read_text() == text
  kept = text.splitlines(keepends=True)[:-3]  # as if killed before the newcomers were evaluated at
  (copy / "metrics.jsonl").write_text("".join(kept))
  with RunFolder.open(copy, to_dict(run.config)) as folder:
    score_finished_run(run.setup, folder, shared, SILENT)
  ours, whole = (
    [json.loads(x) for x in t.splitlines()] for t in ((copy / "metrics.jsonl").read_text(), text)
  )
  assert without_seconds(ours) == without_seconds(whole)


def test_clients_that_share_nothing_send_no_values_and_have_no_global_model(alone):
  trained = [r for r in alone.replies if r.metadata.message_type == "train"]
  assert len(trained) == 2 * 3
  for reply in trained:
    assert set(reply.content["arrays"]) == {"flat"}
    assert reply.content["arrays"]["flat"].numpy().size == 0
    assert reply.content["config"]["structure"] == wire.structure_digest({})
  assert max(line["bytes_up"] for line in alone.lines("clients.jsonl")) < 2000
  assert alone.setup.shared == {} and alone.checkpoint(2)["params"] in ({}, None)
  untrained = alone.setup.global_params({})
  states = sorted((alone.path / "clients").rglob("round_000002.safetensors"))
  assert len(states) == 3
  for file in states:
    own = load_file(file)
    for name in ("pool/prompts", "mapper/place", "visual_prompt", "local/prompt"):
      leaf = functools.reduce(lambda tree, key: tree[key], name.split("/"), untrained)
      assert (own[f"own/{name}"] != leaf).any(), (file, name)
  splits = [line["split"] for line in alone.lines("metrics.jsonl")]
  assert [s for s in splits if s not in ("train", "val")] == [
    "test_personal",
    "test_personal_common",
  ]


def test_clients_with_one_task_are_scored_on_it(alone):
  sites = {line["client"]: line for line in alone.lines("sites.jsonl")}
  for name, rows in alone.setup.clients["train"].items():
    kinds = {bool(alone.setup.splits["train"].examples[row].question) for row in rows}
    assert len(kinds) == 1
    (questions,) = kinds
    assert (sites[name]["personal_cider"] is None) == questions
    assert (sites[name]["personal_exact_match"] is None) != questions
  assert "test_mean_fusion" not in {line["split"] for line in alone.lines("metrics.jsonl")}
