"""Run folders with made-up content of any size."""

import json
import random
from pathlib import Path

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import changed

MALICIOUS = '<script>window.malicious = 1</script><img src=x onerror="window.malicious=1">'
SOURCES = ("global", "visual", "textual", "local")


def made_run(
  path: Path, clients=10, rounds=4, name="site", finished=True, compared=False, **fields
) -> Path:
  """Writes config, metrics, clients, sites, partition and predictions.

  Args:
    path: the folder.
    clients: how many.
    rounds: trained and, every second one, scored.
    name: starts every client's, and is in every text.
    finished: whether the test split was scored.
    compared: whether sites were scored with the baselines of `fed.compare`, too.
    **fields: of the config, by dotted name.
  """
  rng = random.Random(0)
  (path / "predictions").mkdir(parents=True)
  config = changed(Experiment(), {"fed.rounds": rounds, "data.num_clients": clients, **fields})
  facts = {"data": {"test": "1234"}, "backbones": {"clip": "ab", "t5": "cd"}, "partition": "ef"}
  versions = {"python": "3.11.7", "jax": "0.10.2"}
  whole = {"config": to_dict(config), "facts": facts, "versions": versions}
  (path / "config.json").write_text(json.dumps(whole | {"places": [{"devices": "1 x cpu"}]}))
  names = [f"{name} {i:04d}" for i in range(clients)]
  metrics, lines = [scores("val", 0, 0.1)], []
  predict(path / "predictions" / "round_0000.jsonl", 6, name, rng)
  for round in range(1, rounds + 1):
    for i, client in enumerate(names):
      ok = (i + round) % 7 != 0
      status = "ok" if ok else f"rejected: {name}: expected a finite number; got nan"
      line = {"round": round, "client": client, "num_examples": 8 + i if ok else None}
      line |= {"loss": 1 / round if ok else None, "bytes_up": 1000 * ok, "seconds": 0.5}
      lines.append(line | {"status": status})
    usage = {f"pool_usage_{j}": rng.random() for j in range(8)}
    train = {"loss": 2 / round, "prompts_chosen": 2.5, **usage, "round": round, "split": "train"}
    metrics.append(train | {"bytes_up": 5e5, "bytes_down": 1e6, "seconds": 2.0, "clients": clients})
    if round % 2 == 0 or round == rounds:
      metrics.append(scores("val", round, 0.1 + round / rounds))
      predict(path / "predictions" / f"round_{round:04d}.jsonl", 6, name, rng)
  if finished:
    metrics += [scores("test", rounds, 1.5), scores("test_blind", rounds, 0.25)]
    metrics.append(scores("test_personal", rounds, 2.5))
    predict(path / "predictions" / "test.jsonl", 40, name, rng)
    predict(path / "predictions" / "test_personal.jsonl", 40, name, rng)
    sites = [
      {"client": client, "examples": 4, "global_cider": rng.random(), "personal_cider": 1.0 + i / 9}
      for i, client in enumerate(names)
    ]
    if compared:
      metrics += [scores("test_alone", rounds, 2.0), scores("test_pooled", rounds, 3.0)]
      for i, site in enumerate(sites):  # all gain but the first and the second
        site |= {"alone_cider": 1.125, "pooled_cider": 2.0 + i / 99}
    put(path / "sites.jsonl", sites)
  put(path / "metrics.jsonl", metrics)
  put(path / "clients.jsonl", lines)
  parts = {"train": ["a"] * 9, "validation": ["b"], "test": ["c", "d"]}
  labels = {client: {f"{name} cat": 5, f"label {i % 20}": 4} for i, client in enumerate(names)}
  partition = {"partition": "dirichlet", "clients": dict.fromkeys(names, parts)}
  (path / "partition.json").write_text(json.dumps(partition | {"labels": labels, "hash": "ef"}))
  return path


def scores(split, round, cider):
  found = {"loss": 1 - cider / 10, "cider": cider, "bleu4": cider / 10, "rouge_l": cider / 8}
  line = {"round": round, "split": split, **found, "exact_match": 0.5}
  return line | {"bytes_up": 0, "bytes_down": 0, "seconds": 1.0, "clients": 3}


def predict(file, number, name, rng):
  words = ["red", "disc", "blue", "square", "left", "right"]
  lines = []
  for i in range(number):
    text = " ".join(rng.choices(words, k=5))
    line = {"id": f"{name}-{i}", "prediction": f"{text} {name}"}
    line["references"] = [f"{text} {name}", " ".join(words)] if i % 3 else ["a green ring"]
    if i % 4 == 0:
      line |= {"question": f"what is {name} ?", "prediction": "yes", "references": ["yes"]}
    weights = [0.5, 0.3 - i / 1000, 0.2 + i / 1000, 0.0]
    line |= {"fusion": dict(zip(SOURCES, weights, strict=True)), "prompts": {"1": 1.0}}
    lines.append(line)
  put(file, lines)


def put(file: Path, lines) -> None:
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
