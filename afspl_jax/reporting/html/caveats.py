"""Caveats: plain sentences beside a run's scores on what limits their meaning."""

from collections.abc import Sequence

from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.reporting.html.clients import MISSED, update_outcome
from afspl_jax.reporting.html.curves import TITLES
from afspl_jax.reporting.html.files import RunFiles
from afspl_jax.reporting.html.tables import format_number

_GENERATED = "shapes"  # the data source that the tiny pair was pretrained on


def run_caveats(run: RunFiles) -> list[str]:
  """What a reader must know to interpret a run's scores."""
  return [
    *_tiny_backbones(run),
    *_unfinished(run),
    *_trained_alone(run),
    *_sampled(run),
    *_without_image(run),
    *_malicious(run),
    *_lost_updates(run),
    *_privacy(run),
    "CIDEr depends on its references: compare it only on the same examples.",
    "One run has one seed: small differences may be chance.",
  ]


def comparison_caveats(runs: Sequence[RunFiles]) -> list[str]:
  """Why the scores of several runs may not be comparable."""
  out = []
  if len({str(run.facts.get("data")) for run in runs}) > 1:
    out.append("The runs have different data: do not compare their scores.")
  keys = ("val_examples", "test_examples", "max_tokens", "beams", "length_penalty")
  settings = {tuple(run.config.get("eval", {}).get(key) for key in keys) for run in runs}
  if len(settings) > 1:
    out.append("The runs were scored on different examples or with different decoding settings.")
  if len({str(run.facts.get("backbones")) for run in runs}) > 1:
    out.append("The runs have different frozen models.")
  rounds = {run.round for run in runs}
  if len(rounds) > 1:
    out.append(f"The runs have different lengths: {min(rounds)} to {max(rounds)} rounds.")
  return out


def _tiny_backbones(run: RunFiles) -> list[str]:
  tiny = [kind for kind in ("clip", "t5") if run.config.get("backbone", {}).get(kind) == "tiny"]
  if not tiny:
    return []
  names = " and ".join({"clip": "CLIP", "t5": "T5"}[kind] for kind in tiny)
  text = f"The frozen {names} of the package saw only generated images of shapes in pretraining."
  if run.config.get("data", {}).get("source") == _GENERATED:
    return [
      f"{text} This run uses such images, too: its scores compare methods, and say nothing about"
      " photographs."
    ]
  return [f"{text} Its texts about photographs are poor, however well the prompter is trained."]


def _unfinished(run: RunFiles) -> list[str]:
  if run.state != "finished":
    scored = run.last("val")
    if not scored:
      return ["The run is not finished and has no scores yet."]
    return [
      "The run is not finished: its scores are those on the validation split after round"
      f" {scored['round']}."
    ]
  if run.config.get("fed", {}).get("rounds") == 0:
    return ["Nothing was trained: this is the untrained prompter (zero-shot)."]
  return []


def _trained_alone(run: RunFiles) -> list[str]:
  if run.config.get("fed", {}).get("share") != "none":
    return []
  return [
    "Every client trained alone (fed.share=none): only the personalised models were trained."
    " Curves, texts and scores on the validation split belong to the untrained model."
  ]


def _sampled(run: RunFiles) -> list[str]:
  tested = run.last("test") or run.last("test_personal")
  key = "test_examples" if tested else "val_examples"
  number = run.config.get("eval", {}).get(key, 0)
  if not number:
    return []
  return [f"Scores use at most {number} examples, spread evenly over the split, not all of it."]


def _without_image(run: RunFiles) -> list[str]:
  test, blind = run.last("test"), run.last("test_blind")
  return [
    f"{TITLES[name]} is {format_number(blind[name])} without the image, and"
    f" {format_number(test[name])} with it: only the difference comes from the image."
    for name in ("cider", *ANSWERS)
    if test and blind and None not in (test.get(name), blind.get(name))
  ]


def _malicious(run: RunFiles) -> list[str]:
  attackers = run.facts.get("hostile")
  if not attackers:
    return []
  kind = run.config.get("attack", {}).get("kind")
  return [
    f"{len(attackers)} sites were malicious on purpose ({kind}), to test the method: scores of"
    " clients and of personalised models exclude them."
  ]


def _lost_updates(run: RunFiles) -> list[str]:
  lost = [line for line in run.clients if update_outcome(line) == MISSED]
  if not lost:
    return []
  who = {line["client"] for line in lost}
  return [
    f"{len(lost)} updates of {len(who)} clients were not used; their rounds average the rest."
  ]


def _privacy(run: RunFiles) -> list[str]:
  last = run.last("train")
  if not last or "epsilon" not in last:
    return []
  delta = run.config.get("privacy", {}).get("delta")
  return [
    "Differential privacy bounds what the models of all rounds reveal about one client:"
    f" ε = {format_number(last['epsilon'])} at δ = {delta}. This page is not covered: it names the"
    " clients, and scores of personalised models are computed from their data."
  ]
