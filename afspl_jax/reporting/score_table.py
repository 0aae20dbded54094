"""An evaluation as a table for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from afspl_jax.reporting.text_table import columns


def table(summary: Mapping[str, Any]) -> str:
  """What `rescore.evaluate` found, in lines of at most 100 characters for usual names."""
  out = [
    f"{summary['run']}, {summary['split']} split, round {summary['round']}:"
    f" {_whose(summary['prompter'])} on {summary['examples']:,} examples of"
    f" {summary['images']:,} images",
    "",
  ]
  rows: list[Sequence[str]] = [("score", "value", "95 % interval")]
  for name, score in summary["scores"].items():
    low, high = score.get("low"), score.get("high")
    rows.append(
      (name, _number(score["value"]), f"{low:.3f} to {high:.3f}" if "low" in score else "")
    )
  out += columns(rows)
  if summary.get("retrieval"):
    found = summary["retrieval"]
    rows = [("retrieval by the CLIP alone", "R@1", "R@5", "R@10")]
    for way in ("text_to_image", "image_to_text"):
      rows.append((way.replace("_", " "), *(_number(found[f"{way}_r{k}"]) for k in (1, 5, 10))))
    out += ["", *columns(rows)]
  over = summary.get("over_clients")
  if over:
    rows = [("over clients", "clients", "mean", "sd", "worst 10 %", "Gini")]
    for name, found in over.items():
      numbers = (found[key] for key in ("mean", "sd", "worst", "gini"))
      rows.append((name, str(found["clients"]), *map(_number, numbers)))
    out += ["", *columns(rows)]
    rows = [("client", "examples", *over)]
    for line in summary["clients"]:
      rows.append((line["client"], str(line["examples"]), *(_number(line[name]) for name in over)))
    out += ["", *columns(rows)]
  return "\n".join(out)


def _whose(prompter: str) -> str:
  if prompter in ("global", "personal"):
    return {"global": "the global prompter", "personal": "each site's own prompter"}[prompter]
  return f"the prompter of {prompter}"


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"
