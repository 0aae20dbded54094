"""Runs a study: each distinct experiment once, in its own folder, even if others fail.

A study's folder:

```
cells.json       the run of each setting, variant and seed
runs/            a run folder for each distinct config, named by its digest; the file `finished` in
                 it marks a run that finished
logs/            the terminal output of each run
failures.jsonl   a line for each failed attempt: run, cells, reason
compiled/        JAX's compilation cache
table.md, results.json               from tables.py and results.py
bytes.png, gains.png                 from plots.py and gain_plot.py
```
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from afspl_jax.config.study import Cell, Study, cells
from afspl_jax.errors import UserError
from afspl_jax.runs.study.results import FINISHED, is_finished
from afspl_jax.runs.study.workers import Task, run_all
from afspl_jax.storage.atomic_files import write_text


def run_study(
  study: Study,
  workdir: Path,
  jobs: int = 1,
  only: Sequence[str] = (),
  progress: Callable[..., tqdm] = tqdm,
) -> list[Cell]:
  """Runs the experiments of a study that are not finished.

  Args:
    study: what is compared.
    workdir: the study's folder; finished runs in it are not repeated.
    jobs: runs at a time.
    only: runs only the variants whose name contains one of these; () = all.
    progress: makes the progress bar over runs.

  Returns:
    One cell of each run that failed.

  Raises:
    UserError: a mistake in the study, `only` matches no variant, or the folder cannot be written.
  """
  if jobs < 1:
    raise UserError(f"--jobs: expected at least 1; got {jobs}")
  all_cells = cells(study)
  _require_variants(study, only)
  wanted = [cell for cell in all_cells if not only or any(part in cell.variant for part in only)]
  cells_of_run: dict[str, list[Cell]] = {}
  for cell in wanted:
    cells_of_run.setdefault(cell.run, []).append(cell)
  _write_folder(workdir, all_cells)
  left = {run: own for run, own in cells_of_run.items() if not is_finished(workdir, run)}
  bar = progress(
    total=len(cells_of_run), initial=len(cells_of_run) - len(left), unit="run", desc="runs"
  )
  with bar:
    return _run_tasks(workdir, left, jobs, bar)


def _run_tasks(
  workdir: Path, left: Mapping[str, Sequence[Cell]], jobs: int, bar: tqdm
) -> list[Cell]:
  """Runs the experiments that are left, and returns one cell of each that failed."""
  tasks = [
    Task(own[0].config, workdir / "runs" / run, workdir / "logs" / f"{run}.log")
    for run, own in left.items()
  ]
  failed = []
  with closing(run_all(tasks, jobs, (workdir / "compiled").absolute())) as results:
    for task, failure in results:
      own = left[task.folder.name]
      if failure:
        failed.append(own[0])
        _record_failure(workdir, task, own, failure)
        bar.write(f"{own[0]}: {failure} (full log: {task.log})")
      else:
        write_text(task.folder / FINISHED, "")
      bar.update(1)
      bar.set_postfix_str(str(own[0]))
  return failed


def _require_variants(study: Study, only: Iterable[str]) -> None:
  for part in only:
    if not any(part in variant for variant in study.variants):
      raise UserError(
        f"--only={part}: expected a part of one of {', '.join(study.variants)}; got {part!r}"
      )


def _write_folder(workdir: Path, all_cells: Sequence[Cell]) -> None:
  """Makes the study's folder, with cells.json in it."""
  lines = [
    {"setting": c.setting, "variant": c.variant, "seed": c.seed, "run": f"runs/{c.run}"}
    for c in all_cells
  ]
  try:
    for name in ("runs", "logs"):
      (workdir / name).mkdir(parents=True, exist_ok=True)
    write_text(workdir / "cells.json", json.dumps(lines, indent=2, ensure_ascii=False) + "\n")
  except OSError as error:
    raise UserError(
      f"{workdir}: expected a folder that can be written; got: {error}. Choose another --workdir"
    ) from error


def _record_failure(workdir: Path, task: Task, own: Sequence[Cell], reason: str) -> None:
  line = {"run": task.folder.name, "cells": [str(cell) for cell in own], "reason": reason}
  with open(workdir / "failures.jsonl", "a", encoding="utf-8") as file:
    file.write(json.dumps(line, ensure_ascii=False) + "\n")
