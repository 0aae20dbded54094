"""What a run's prompts did: the weights of the fusion, and the use of the pool, over rounds."""

import functools
import re
from pathlib import Path

from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import Axes, Chart
from afspl_jax.reporting.html.curves import MOST, thinned
from afspl_jax.reporting.html.files import Run, file_stamp
from afspl_jax.reporting.html.tables import Number, Table, number
from afspl_jax.storage.run_lines import read_lines

_FILES = 40  # of predictions that the fusion's weights are read from
_CELLS = 40  # rounds across the picture of the pool
_POOL = re.compile(r"pool_usage_[0-9]{1,6}")
_TASKS = {"captions": False, "questions": True}

Weights = dict[str, dict[str, Number]]  # mean weight of each source, by task


def fusion(run: Run) -> list[Chart]:
  """A chart for each task that the run has predictions of: mean weights of the prompt sources."""
  by_round = _fusion_by_round(run)
  drawn = []
  for task in _TASKS:
    by_source: dict[str, list[tuple[Number, Number]]] = {}
    for round, weights in by_round.items():
      for source, weight in weights.get(task, {}).items():
        if source != "local":  # which the global prompter does not have
          by_source.setdefault(source, []).append((round, weight))
    if not by_source:
      continue
    words = [f"{source}: {charts.trend(points, 'round')}" for source, points in by_source.items()]
    rows = [
      {"x": x, "y": y, "series": source} for source, points in by_source.items() for x, y in points
    ]
    spec = charts.lines(rows, Axes("round", "mean weight"), list(by_source))
    caption = (
      "How much of the prompt comes from each source, by the global prompter on the validation"
      " split; it has no local prompt."
    )
    drawn.append(charts.chart(f"Fusion weights, {task}", caption, ". ".join(words), spec))
  return drawn


def fusion_table(run: Run) -> Table | None:
  """The numbers of the fusion's charts."""
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
    [str(round), *(number(weights.get(task, {}).get(source)) for task, source in columns)]
    for round, weights in by_round.items()
  ]
  return Table("Mean fusion weights", head, rows)


def pool(run: Run) -> list[Chart]:
  """How often each prompt of the pool was chosen, and how many were chosen for a sample."""
  used = _pool_by_round(run)
  if not used:
    return []
  prompts = list(next(iter(used.values())))
  shown = thinned(list(used), _CELLS)
  cells = [
    {"across": str(round), "down": prompt, "value": used[round][prompt]}
    for round in shown
    for prompt in prompts
  ]
  last = used[shown[-1]]
  most, least = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
  alt = (
    f"In round {shown[-1]} prompt {most} was chosen most, for {last[most]:.0%} of the samples, and"
    f" prompt {least} least, for {last[least]:.0%}"
  )
  caption = "The stronger the colour, the more of the training samples chose this prompt."
  spec = charts.heat(cells, Axes("round", "prompt"), [str(round) for round in shown], prompts)
  drawn = [charts.chart("Use of the pool", caption, alt, spec)]
  points = [
    (line["round"], line["prompts_chosen"])
    for line in thinned(run.of("train"), MOST)
    if line.get("prompts_chosen") is not None
  ]
  if points:
    rows = [{"x": x, "y": y, "series": "chosen"} for x, y in points]
    spec = charts.lines(rows, Axes("round", "prompts"), ["chosen"])
    caption = "Mean number of prompts that a training sample takes from the pool."
    alt = charts.trend(points, "round")
    drawn.append(charts.chart("Prompts chosen for a sample", caption, alt, spec))
  return drawn


def pool_table(run: Run) -> Table | None:
  """The numbers of the pool's charts."""
  used = _pool_by_round(run)
  if not used:
    return None
  prompts = list(next(iter(used.values())))
  rows = [
    [str(round), *(number(used[round][p], 2) for p in prompts)]
    for round in thinned(list(used), _CELLS)
  ]
  head = ["Round", *(f"Prompt {prompt}" for prompt in prompts)]
  return Table("Share of training samples that chose a prompt", head, rows)


def _pool_by_round(run: Run) -> dict[int, dict[str, Number]]:
  """The share of samples that chose each prompt, by round."""
  out: dict[int, dict[str, Number]] = {}
  for line in run.of("train"):
    keys = sorted(filter(_POOL.fullmatch, line), key=lambda key: (len(key), key))
    found = {key.rpartition("_")[2]: line[key] for key in keys}
    same = not out or found.keys() == next(iter(out.values())).keys()  # a run has one pool
    if found and same and all(isinstance(share, int | float) for share in found.values()):
      out[line["round"]] = found
  return out


def _fusion_by_round(run: Run) -> dict[int, Weights]:
  """Mean weights by round, of some of them where there are many."""
  found = {}
  for round, file in thinned(list(run.rounds().items()), _FILES):
    stamp = file_stamp(file)
    if stamp is not None:
      found[round] = _mean_weights(stamp)
  return found


@functools.lru_cache(maxsize=4 * _FILES)  # files of finished rounds stay as they are
def _mean_weights(stamp: tuple[str, int, int]) -> Weights:
  lines = read_lines(Path(stamp[0]))
  out: Weights = {}
  for task, asked in _TASKS.items():
    part = [line["fusion"] for line in lines if bool(line.get("question")) == asked]
    if part and part[0]:
      out[task] = {source: sum(w[source] for w in part) / len(part) for source in part[0]}
  return out
