"""sites.jsonl: the scores of each site by every model that its test examples were given to."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from afspl_jax.evaluation.scores import TextWithReferences
from afspl_jax.runs.scoring.personalised import site_scores
from afspl_jax.storage.atomic_files import write_text
from afspl_jax.storage.run_lines import read_lines

FILE = "sites.jsonl"
_MODELS = {
  "test_personal": "personal",
  "test": "global",
  "test_alone": "alone",
  "test_pooled": "pooled",
}


def write_site_table(folder: Path, views: Collection[str], client_of: Mapping[str, str]) -> None:
  """Writes sites.jsonl from the predictions of a run, if some of them are of its sites' models.

  Args:
    folder: the run folder.
    views: the finished views, by their name in metrics.jsonl.
    client_of: the client of each test example, by id.
  """
  found = {
    model: {line["id"]: line for line in read_lines(folder / "predictions" / f"{view}.jsonl")}
    for view, model in _MODELS.items()
    if view in views
  }
  if "personal" not in found:
    return
  ids = list(found["personal"])
  lines = found["personal"].values()
  examples = [
    TextWithReferences(x["prediction"], x["references"], x.get("question", "")) for x in lines
  ]
  texts = {model: [of[each]["prediction"] for each in ids] for model, of in found.items()}
  sites = site_scores([client_of[each] for each in ids], examples, texts)
  write_text(folder / FILE, "".join(json.dumps(line) + "\n" for line in sites))
