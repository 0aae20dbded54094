"""Formats an evaluation as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.reporting.text_table import align_columns


def format_evaluation(summary: Mapping[str, Any]) -> str:
  """The summary of an evaluation, in lines of at most 100 characters unless names are long."""
  out = [
    f"{summary['run']}, {summary['split']} split, round {summary['round']}:"
    f" {_model(summary['prompter'])} on {summary['examples']:,} examples of"
    f" {summary['images']:,} images",
    "",
  ]
  rows: list[Sequence[str]] = [("score", "value", "95 % interval")]
  for name, score in summary["scores"].items():
    low, high = score.get("low"), score.get("high")
    rows.append(
      (name, _number(score["value"]), f"{low:.3f} to {high:.3f}" if "low" in score else "")
    )
  out += align_columns(rows)
  if summary.get("retrieval"):
    found = summary["retrieval"]
    rows = [("retrieval by CLIP alone", "R@1", "R@5", "R@10")]
    for way in ("text_to_image", "image_to_text"):
      rows.append((way.replace("_", " "), *(_number(found[f"{way}_r{k}"]) for k in (1, 5, 10))))
    out += ["", *align_columns(rows)]
  over = summary.get("over_clients")
  if over:
    rows = [("over clients", "clients", "mean", "sd", "worst 10 %", "Gini")]
    for name, found in over.items():
      numbers = (found[key] for key in ("mean", "sd", "worst", "gini"))
      rows.append((name, str(found["clients"]), *map(_number, numbers)))
    out += ["", *align_columns(rows)]
    rows = [("client", "examples", *over)]
    for line in summary["clients"]:
      rows.append((line["client"], str(line["examples"]), *(_number(line[name]) for name in over)))
    out += ["", *align_columns(rows)]
  return "\n".join(out)


def _model(name: str) -> str:
  if name in ("global", "personal"):
    return {"global": "the global model", "personal": "the personalised models"}[name]
  return f"the personalised model of {name}"


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"
