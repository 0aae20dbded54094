"""A trained prompter as a repository of the hub: weights, settings and a model card."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.weight_forms import SAFETENSORS
from afspl_jax.runs.trained.prompter_file import PrompterInfo
from afspl_jax.runs.trained.trained_prompter import TrainedPrompter, export_prompter
from afspl_jax.storage.atomic_files import write_text

CARD = "README.md"
_FILES = (SAFETENSORS.single, "config.json", CARD)
_CARD = """---
{metadata}
---

# A prompter for {backbones}

This is the trained part of a vision-language model: soft prompts, their fusion, and a visual
mapper. The two networks that it connects stay as they were published, and are not in this
repository.

```python
import afspl_jax

model = afspl_jax.load("OWNER/NAME")  # the name of this repository, or a folder
model.caption(["photo.jpg"])
```

| backbone | name | hash of its files |
| --- | --- | --- |
{rows}

## Training

Adaptive Federated Soft Prompt Learning: {clients} clients, {rounds} rounds, {strategy}. These are
the parameters after round {round}. All settings are in `config.json`.

## Data

Data set `{source}`, partition `{partition}`. The data stayed at the clients; no image and no text
is in this repository. The prompter writes texts like those of these data: score it on yours before
you use it.

## Privacy

{privacy}

## Scores

{scores}
"""


def write_hub_folder(trained: TrainedPrompter, folder: Path) -> PrompterInfo:
  """Writes a folder that can be uploaded as it is.

  Args:
    trained: the prompter, without a site.
    folder: created if it is missing.

  Raises:
    UserError: the prompter has a site, or the folder has other files or cannot be written.
  """
  if trained.site:
    raise UserError(
      f"--hub: expected the global model, because a local prompt stays at its site; got that of"
      f" {trained.site}. Leave out --site"
    )
  try:
    folder.mkdir(parents=True, exist_ok=True)
    other = [path.name for path in folder.iterdir() if path.name not in _FILES]
    if other:
      raise UserError(f"{folder}: expected an empty folder; got {', '.join(sorted(other)[:5])}")
    described = export_prompter(trained, folder / SAFETENSORS.single)
    settings = {
      "model_type": "afspl_jax",
      "config": to_dict(described.config),
      "backbones": described.backbones,
      "round": described.round,
    }
    write_text(folder / "config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")
    write_text(folder / CARD, model_card(described))
  except OSError as error:
    raise UserError(f"{folder}: expected a folder that can be written; got: {error}") from error
  return described


def model_card(info: PrompterInfo) -> str:
  """The README.md of a repository: what the prompter is, its data, its privacy and its scores."""
  config = info.config
  names = {kind: getattr(config.backbone, kind) for kind in sorted(info.backbones)}
  rows = [f"| {kind} | `{name}` | `{info.backbones[kind]}` |" for kind, name in names.items()]
  return _CARD.format(
    metadata=_metadata(info, list(names.values())),
    backbones=" and ".join(names.values()),
    rows="\n".join(rows),
    clients=config.data.num_clients,
    rounds=config.fed.rounds,
    strategy=config.fed.strategy,
    round=info.round,
    source=config.data.source,
    partition=config.data.partition,
    privacy="\n".join(privacy_statement(config)),
    scores=_scores(info),
  )


def privacy_statement(config: Experiment) -> list[str]:
  """What a reader of the parameters may learn of the training data, a line for each setting."""
  privacy, lines = config.privacy, []
  if privacy.dp == "none":
    lines.append(
      "- Trained without differential privacy for clients: the parameters may reveal something"
      " about the data of a client."
    )
  else:
    budget = f"a budget of ε = {privacy.epsilon:g}" if privacy.epsilon else "no fixed budget"
    who = {"central": "the server", "local": "each client"}[privacy.dp]
    lines.append(
      f"- Differential privacy for clients: {who} adds the noise, with {budget} at"
      f" δ = {privacy.delta:g}."
    )
  if privacy.example_clip:
    limit = privacy.example_epsilon
    spent = f"a budget of ε = {limit:g} for each client" if limit else "no fixed budget"
    lines.append(
      f"- Differential privacy for examples (DP-SGD): noise {privacy.example_noise:g}, {spent}."
    )
  if config.secure.aggregation:
    lines.append("- Secure aggregation: the server saw sums of updates, and no single update.")
  if config.fed.share != "none":
    lines.append("- Local prompts stayed at their clients and are not in this repository.")
  return lines


def _metadata(info: PrompterInfo, names: list[str]) -> str:
  """The card's YAML, as the hub reads it."""
  results = [
    EvalResult(
      task_type="image-to-text",
      dataset_type=info.config.data.source,
      dataset_name=f"{info.config.data.source} ({split})",
      dataset_split=split,
      metric_type=name,
      metric_value=round(value, 6),
    )
    for split, scores in sorted(info.scores.items())
    for name, value in sorted(scores.items())
  ]
  data = ModelCardData(
    library_name="afspl_jax",
    pipeline_tag="image-to-text",
    tags=["afspl_jax", "federated-learning", "prompt-tuning"],
    base_model=[name for name in names if name.count("/") == 1] or None,
    model_name="prompter" if results else None,
    eval_results=results or None,
  )
  return data.to_yaml()


def _scores(info: PrompterInfo) -> str:
  if not info.scores:
    return "The run has no scores after this round."
  head = "| split | score | value |\n| --- | --- | --- |\n"
  return (
    "Of the global model.\n\n"
    + head
    + "\n".join(
      f"| {split} | {name} | {value:.4f} |"
      for split, scores in sorted(info.scores.items())
      for name, value in sorted(scores.items())
    )
  )
