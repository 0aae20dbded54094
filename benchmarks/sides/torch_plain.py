"""P1: plain PyTorch with transformers: a loop over clients, and unchanged models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, T5ForConditionalGeneration

from benchmarks.case import Case, Rows
from benchmarks.sides.side import Leaves, Trained
from benchmarks.sides.torch_prompter import Prompted, Prompter, parameter_groups

_IGNORED = -100  # the loss of transformers ignores this label


class TorchPlain:
  """Runs both backbones in every step, and trains one client after another; see `Side`."""

  def __init__(self, case: Case, folders: Mapping[str, Path], params: Leaves):
    self._config, self._params = case.config, params
    # Stays in eval mode: dropout in frozen models only adds noise.
    self._dtype = getattr(torch, case.dtype)
    of = {"dtype": self._dtype}
    self._clip = CLIPVisionModelWithProjection.from_pretrained(folders["clip"], **of)
    self._t5 = T5ForConditionalGeneration.from_pretrained(folders["t5"], **of)
    self._clip.requires_grad_(False)
    self._t5.requires_grad_(False)
    self._pixels = torch.from_numpy(case.pixels()).permute(0, 3, 1, 2).to(self._dtype).contiguous()

  def frozen(self) -> dict[str, Tensor]:
    """Returns the backbones' weights, which training must not change."""
    models = {"clip": self._clip, "t5": self._t5}
    return {f"{m}.{name}": x for m, model in models.items() for name, x in model.named_parameters()}

  def encode(self) -> None:
    """Does nothing: CLIP sees the pixels of every batch."""

  def train(self, rows: Rows) -> Trained:
    """Trains one client after another."""
    steps, clients, _ = rows.image.shape
    losses = np.zeros((steps, clients), np.float32)
    trained = []
    for client in range(clients):
      batches = [self._collate(rows, step, client) for step in range(steps)]
      prompter = self._prompter()
      losses[:, client] = self._train_client(prompter, batches)
      trained.append(prompter.leaves())
    return Trained(losses, _stacked(trained))

  def start_from(self, params: Leaves) -> None:
    """Sets the params for training and generation."""
    self._params = params

  def generate(
    self, rows: Rows, beams: int, tokens: int, until_end: bool = False
  ) -> Int[np.ndarray, "n t"]:
    """Generates with transformers; with `until_end`, a text may end before `tokens`."""
    batch = self._collate(rows, 0, 0)
    with torch.no_grad():
      inputs = self._inputs(self._prompt(self._prompter(), batch), batch)
      ids = self._t5.generate(
        **inputs,
        num_beams=beams,
        do_sample=False,
        min_new_tokens=0 if until_end else tokens,
        max_new_tokens=tokens,
      )
    return ids[:, 1:].numpy()

  def _prompter(self) -> Prompter:
    return Prompter(self._config, self._t5.get_input_embeddings().weight, self._params)

  def _train_client(
    self, prompter: Prompter, batches: list[dict[str, Tensor]]
  ) -> Float[np.ndarray, " k"]:
    optim = self._config.optim
    optimizer = torch.optim.AdamW(
      parameter_groups(prompter, optim),
      betas=(optim.b1, optim.b2),
      weight_decay=optim.weight_decay,
    )
    losses = []
    for batch in batches:
      prompted = self._prompt(prompter, batch)
      # The decoder's cache is on by default, and training does not need it.
      out = self._t5(**self._inputs(prompted, batch), labels=batch["labels"], use_cache=False)
      objective = out.loss + optim.balance * prompted.balance
      optimizer.zero_grad()
      objective.backward()
      torch.nn.utils.clip_grad_norm_(prompter.parameters(), optim.clip_norm)
      optimizer.step()
      losses.append(out.loss.item())
    return np.array(losses, np.float32)

  def _prompt(self, prompter: Prompter, batch: dict[str, Tensor]) -> Prompted:
    with torch.no_grad():
      seen = self._clip(pixel_values=self._pixels[batch["image"]])
    tokens, joint = seen.last_hidden_state.float(), seen.image_embeds.float()
    return prompter(tokens, joint, batch["text"], batch["personal"])

  def _inputs(self, prompted: Prompted, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    words = self._t5.get_input_embeddings()(batch["instruction"])
    seen = batch["instruction_mask"].new_ones(prompted.prefix.shape[:2])
    return {
      "inputs_embeds": torch.cat([prompted.prefix.to(self._dtype), words], 1),
      "attention_mask": torch.cat([seen, batch["instruction_mask"]], 1),
    }

  def _collate(self, rows: Rows, step: int, client: int) -> dict[str, Tensor]:
    batch = {name: torch.tensor(x[step, client]) for name, x in rows._asdict().items()}
    mask = batch.pop("targets_mask")
    labels = batch.pop("targets").long().masked_fill(~mask, _IGNORED)
    batch["labels"] = labels[:, : mask.sum(1).max()].contiguous()
    batch["instruction_mask"] = batch["instruction_mask"].long()
    return batch


def _stacked(trees: list[dict[str, Any]]) -> dict[str, Any]:
  out = {}
  for name, first in trees[0].items():
    parts = [tree[name] for tree in trees]
    out[name] = _stacked(parts) if isinstance(first, dict) else np.stack(parts)
  return out
