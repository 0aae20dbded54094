"""Charts of a run's prompts over rounds: fusion weights, and use of the pool."""

import functools
import re
from pathlib import Path

from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import AxisTitles, Chart
from afspl_jax.reporting.html.curves import MOST, thin_out
from afspl_jax.reporting.html.files import RunFiles, file_stamp
from afspl_jax.reporting.html.tables import Number, Table, format_number
from afspl_jax.storage.run_lines import read_lines

_FILES = 40  # of predictions that fusion weights are read from
_CELLS = 40  # rounds in the heat map of the pool
_POOL = re.compile(r"pool_usage_[0-9]{1,6}")
_TASKS = {"captions": False, "questions": True}

FusionWeights = dict[str, dict[str, Number]]  # mean weight of each source, by task


def fusion_charts(run: RunFiles) -> list[Chart]:
  """A chart for each task with predictions: mean weights of the prompt sources."""
  by_round = _fusion_by_round(run)
  drawn = []
  for task in _TASKS:
    by_source: dict[str, list[tuple[Number, Number]]] = {}
    for round, weights in by_round.items():
      for source, weight in weights.get(task, {}).items():
        if source != "local":  # the global model does not use it
          by_source.setdefault(source, []).append((round, weight))
    if not by_source:
      continue
    words = [
      f"{source}: {charts.describe_trend(points, 'round')}" for source, points in by_source.items()
    ]
    rows = [
      {"x": x, "y": y, "series": source} for source, points in by_source.items() for x, y in points
    ]
    spec = charts.line_spec(rows, AxisTitles("round", "mean weight"), list(by_source))
    caption = (
      "Weight of each prompt source in the global model, on the validation split. The global model"
      " has no local prompt."
    )
    drawn.append(charts.draw_chart(f"Fusion weights, {task}", caption, ". ".join(words), spec))
  return drawn


def fusion_table(run: RunFiles) -> Table | None:
  """The numbers of the fusion charts."""
  by_round = _fusion_by_round(run)
  columns = [
    (task, source)
    for task in _TASKS
    for source in dict.fromkeys(s for weights in by_round.values() for s in weights.get(task, {}))
  ]
  if not columns:
    return None
  head = ["Round", *(f"{source}, {task}" for task, source in columns)]
  rows = [
    [str(round), *(format_number(weights.get(task, {}).get(source)) for task, source in columns)]
    for round, weights in by_round.items()
  ]
  return Table("Mean fusion weights", head, rows)


def pool_charts(run: RunFiles) -> list[Chart]:
  """How often each prompt of the pool was selected, and how many were selected per sample."""
  used = _pool_by_round(run)
  if not used:
    return []
  prompts = list(next(iter(used.values())))
  shown = thin_out(list(used), _CELLS)
  cells = [
    {"across": str(round), "down": prompt, "value": used[round][prompt]}
    for round in shown
    for prompt in prompts
  ]
  last = used[shown[-1]]
  most, least = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
  alt = (
    f"In round {shown[-1]}, prompt {most} was selected most often, for {last[most]:.0%} of the"
    f" samples, and prompt {least} least often, for {last[least]:.0%}"
  )
  caption = "Fraction of training samples that select each prompt; a stronger colour means more."
  spec = charts.heat_spec(
    cells, AxisTitles("round", "prompt"), [str(round) for round in shown], prompts
  )
  drawn = [charts.draw_chart("Use of the pool", caption, alt, spec)]
  points = [
    (line["round"], line["prompts_chosen"])
    for line in thin_out(run.of("train"), MOST)
    if line.get("prompts_chosen") is not None
  ]
  if points:
    rows = [{"x": x, "y": y, "series": "selected"} for x, y in points]
    spec = charts.line_spec(rows, AxisTitles("round", "prompts"), ["selected"])
    caption = "Mean number of pool prompts that a training sample selects."
    alt = charts.describe_trend(points, "round")
    drawn.append(charts.draw_chart("Prompts selected per sample", caption, alt, spec))
  return drawn


def pool_table(run: RunFiles) -> Table | None:
  """The numbers of the pool charts."""
  used = _pool_by_round(run)
  if not used:
    return None
  prompts = list(next(iter(used.values())))
  rows = [
    [str(round), *(format_number(used[round][p], 2) for p in prompts)]
    for round in thin_out(list(used), _CELLS)
  ]
  head = ["Round", *(f"Prompt {prompt}" for prompt in prompts)]
  return Table("Fraction of training samples that select each prompt", head, rows)


def _pool_by_round(run: RunFiles) -> dict[int, dict[str, Number]]:
  """The fraction of samples that selected each prompt, by round."""
  out: dict[int, dict[str, Number]] = {}
  for line in run.of("train"):
    keys = sorted(filter(_POOL.fullmatch, line), key=lambda key: (len(key), key))
    found = {key.rpartition("_")[2]: line[key] for key in keys}
    same = (
      not out or found.keys() == next(iter(out.values())).keys()
    )  # the pool has the same size in all rounds
    if found and same and all(isinstance(share, int | float) for share in found.values()):
      out[line["round"]] = found
  return out


def _fusion_by_round(run: RunFiles) -> dict[int, FusionWeights]:
  """Mean weights by round; of many rounds, only some are read."""
  found = {}
  for round, file in thin_out(list(run.rounds().items()), _FILES):
    stamp = file_stamp(file)
    if stamp is not None:
      found[round] = _mean_weights(stamp)
  return found


@functools.lru_cache(maxsize=4 * _FILES)  # files of finished rounds do not change
def _mean_weights(stamp: tuple[str, int, int]) -> FusionWeights:
  lines = read_lines(Path(stamp[0]))
  out: FusionWeights = {}
  for task, asked in _TASKS.items():
    part = [line["fusion"] for line in lines if bool(line.get("question")) == asked]
    if part and part[0]:
      out[task] = {source: sum(w[source] for w in part) / len(part) for source in part[0]}
  return out
