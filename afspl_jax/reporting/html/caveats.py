"""What a run's scores rest on, said in plain sentences beside them."""

from collections.abc import Sequence

from afspl_jax.reporting.html.clients import MISSED, outcome
from afspl_jax.reporting.html.curves import TITLES
from afspl_jax.reporting.html.files import Run
from afspl_jax.reporting.html.tables import number

_DRAWN = "shapes"  # the source that the tiny pair was pretrained on


def caveats(run: Run) -> list[str]:
  """What a reader must know before believing a run's scores."""
  data, evaluation = run.config.get("data", {}), run.config.get("eval", {})
  out = []
  tiny = [kind for kind in ("clip", "t5") if run.config.get("backbone", {}).get(kind) == "tiny"]
  if tiny:
    names = " and ".join({"clip": "CLIP", "t5": "T5"}[kind] for kind in tiny)
    text = f"The frozen {names} that come with the package saw nothing but a drawn world of shapes."
    if data.get("source") == _DRAWN:
      text += " So did this run: its scores compare methods, and say nothing about photographs."
    else:
      text += " Its texts about real pictures are poor, however well the prompter was trained."
    out.append(text)
  if run.state != "finished":
    scored = run.last("val")
    where = f"the validation split after round {scored['round']}" if scored else "nothing yet"
    out.append(f"The run is not finished: its scores are those on {where}.")
  elif run.config.get("fed", {}).get("rounds") == 0:
    out.append("Nothing was trained: this is the untrained prompter (zero-shot).")
  if run.config.get("fed", {}).get("share") == "none":
    out.append(
      "Every client trained alone (fed.share=none): only own prompters were trained. Curves, texts"
      " and scores on the validation split are of the untrained one."
    )
  tested = run.last("test") or run.last("test_personal")
  wanted = evaluation.get("test_examples" if tested else "val_examples", 0)
  if wanted:
    out.append(f"Scores are of at most {wanted} examples, spread over the split, not of all of it.")
  test, blind = run.last("test"), run.last("test_blind")
  for name in ("cider", "vqa_accuracy"):
    if test and blind and None not in (test.get(name), blind.get(name)):
      out.append(
        f"{TITLES[name]} is {number(blind[name])} when the same prompter is shown no image, and"
        f" {number(test[name])} with it: only the difference comes from looking."
      )
  if hostile := run.facts.get("hostile"):
    out.append(
      f"{len(hostile)} sites were made hostile ({run.config.get('attack', {}).get('kind')}), to see"
      " what the method withstands: scores of clients and of their own prompts are of the others."
    )
  lost = [line for line in run.clients if outcome(line) == MISSED]
  if lost:
    who = {line["client"] for line in lost}
    out.append(
      f"{len(lost)} updates of {len(who)} clients were not used: those rounds average the others."
    )
  private, privacy = run.last("train"), run.config.get("privacy", {})
  if private and "epsilon" in private:
    out.append(
      "What the models of all rounds tell of one client is bounded by differential privacy of"
      f" ε = {number(private['epsilon'])} at δ = {privacy.get('delta')}. That does not cover this"
      " page: it names who took part, and scores by clients' own prompts are made from their data."
    )
  return [
    *out,
    "CIDEr depends on the references it is computed from, and compares on the same examples only.",
    "One run has one seed: small differences may be chance.",
  ]


def comparison(runs: Sequence[Run]) -> list[str]:
  """Why scores of several runs may not compare."""
  out = []
  if len({str(run.facts.get("data")) for run in runs}) > 1:
    out.append("The runs have different data: do not compare their scores.")
  keys = ("val_examples", "test_examples", "max_tokens", "beams", "length_penalty")
  asked = {tuple(run.config.get("eval", {}).get(key) for key in keys) for run in runs}
  if len(asked) > 1:
    out.append("The runs were scored on different examples, or generated text in different ways.")
  if len({str(run.facts.get("backbones")) for run in runs}) > 1:
    out.append("The runs have different frozen models.")
  rounds = {run.round for run in runs}
  if len(rounds) > 1:
    out.append(f"The runs are of different lengths: {min(rounds)} to {max(rounds)} rounds.")
  return out
