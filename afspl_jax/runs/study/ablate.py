"""Runs a study: each distinct experiment once, in a folder of its own, whatever happens to others.

A study's folder:

```
cells.json       which run holds each setting, variant and seed
runs/            a run's folder for each distinct config, named by its digest; `finished` in it
                 marks one that ended well
logs/            what each run wrote to its terminal
failures.jsonl   a line per failed attempt: run, cells, reason
compiled/        JAX's compilation cache
table.md, results.json, bytes.png    from tables.py and plots.py
```
"""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from afspl_jax.config.study import Cell, Study, cells
from afspl_jax.errors import UserError
from afspl_jax.runs.study.tables import FINISHED, is_finished
from afspl_jax.runs.study.workers import Task, run_all
from afspl_jax.storage.atomic_files import write_text


def ablate(
  study: Study,
  workdir: Path,
  jobs: int = 1,
  only: Sequence[str] = (),
  progress: Callable[..., tqdm] = tqdm,
) -> list[Cell]:
  """Runs what a study still lacks; every number is then on disk, for `tables.write`.

  Args:
    study: what is compared.
    workdir: the study's folder; what is finished in it is not repeated.
    jobs: runs at a time.
    only: parts of variants' names: the others are left for later; () = all.
    progress: makes the bar over runs.

  Returns:
    A cell of each run that failed.

  Raises:
    UserError: a mistake in the study, no variant that `only` names, or a folder that cannot be
      written.
  """
  if jobs < 1:
    raise UserError(f"--jobs: expected at least 1; got {jobs}")
  everything = cells(study)
  for part in only:
    if not any(part in variant for variant in study.variants):
      raise UserError(
        f"--only={part}: expected a part of one of {', '.join(study.variants)}; got {part!r}"
      )
  users: dict[str, list[Cell]] = {}
  for cell in everything:
    if not only or any(part in cell.variant for part in only):
      users.setdefault(cell.run, []).append(cell)
  try:
    for name in ("runs", "logs"):
      (workdir / name).mkdir(parents=True, exist_ok=True)
    write_text(workdir / "cells.json", _cells_json(everything))
  except OSError as error:
    raise UserError(
      f"{workdir}: expected a folder that can be written; got: {error}. Choose another --workdir"
    ) from error

  lacking = {run: own for run, own in users.items() if not is_finished(workdir, run)}
  tasks = [
    Task(own[0].config, workdir / "runs" / run, workdir / "logs" / f"{run}.log")
    for run, own in lacking.items()
  ]
  failed = []
  bar = progress(total=len(users), initial=len(users) - len(tasks), unit="run", desc="runs")
  with bar, closing(run_all(tasks, jobs, (workdir / "compiled").absolute())) as results:
    for task, failure in results:
      own = lacking[task.folder.name]
      if not failure:
        write_text(task.folder / FINISHED, "")
      else:
        failed.append(own[0])
        line = {"run": task.folder.name, "cells": [str(cell) for cell in own], "reason": failure}
        with open(workdir / "failures.jsonl", "a", encoding="utf-8") as file:
          file.write(json.dumps(line, ensure_ascii=False) + "\n")
        bar.write(f"{own[0]}: {failure} (all of it: {task.log})")
      bar.update(1)
      bar.set_postfix_str(str(own[0]))
  return failed


def _cells_json(everything: list[Cell]) -> str:
  lines = [
    {"setting": c.setting, "variant": c.variant, "seed": c.seed, "run": f"runs/{c.run}"}
    for c in everything
  ]
  return json.dumps(lines, indent=2, ensure_ascii=False) + "\n"
