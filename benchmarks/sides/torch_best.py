"""P2: the fastest PyTorch that we can write for a CPU without custom kernels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.case import Case, Rows
from benchmarks.sides.side import Leaves, Trained
from benchmarks.sides.torch_prompter import Prompted, Prompter, parameter_groups
from benchmarks.sides.torch_t5 import FrozenT5

_BATCH = 32  # images that CLIP encodes at a time

# A compiled program has fixed shapes: target lengths are rounded up to a multiple of this.
_COMPILED_LENGTHS = 8


class TorchBest:
  """Cached features, all clients in one step, and a lean T5 on chunks of rows of similar length.

  Args:
    case: see `Side`.
    folders: see `Side`.
    params: see `Side`.
    chunk: largest number of rows that T5 processes at a time; 0: all rows.
    compile: compile T5 for training.
  """

  def __init__(
    self,
    case: Case,
    folders: Mapping[str, Path],
    params: Leaves,
    *,
    chunk: int = 32,
    compile: bool = False,
  ):
    self._config, self._params, self._chunk = case.config, params, chunk
    self._cut = _COMPILED_LENGTHS if compile else 1
    self._dtype = getattr(torch, case.dtype)
    of = {"dtype": self._dtype}
    self._clip = CLIPVisionModelWithProjection.from_pretrained(folders["clip"], **of)
    self._t5 = T5ForConditionalGeneration.from_pretrained(folders["t5"], **of)
    self._clip.requires_grad_(False)
    self._t5.requires_grad_(False)
    self._frozen_t5 = FrozenT5(self._t5, compile)
    self._cross = _quicken(self._t5)
    self._pixels = torch.from_numpy(case.pixels()).permute(0, 3, 1, 2).to(self._dtype).contiguous()

  def frozen(self) -> dict[str, Tensor]:
    """Returns all weights that training must not change, with those derived from the backbones."""
    models = {"clip": self._clip, "t5": self._t5}
    named = (
      (f"{m}.{name}", x) for m, model in models.items() for name, x in model.named_parameters()
    )
    return dict(named) | {f"lean.{name}": x for name, x in self._frozen_t5.frozen().items()}

  @torch.no_grad()  # tensors of inference mode cannot be used in training
  def encode(self) -> None:
    """Encodes all images and stores their features."""
    parts = [self._clip(pixel_values=images) for images in self._pixels.split(_BATCH)]
    self._tokens = torch.cat([part.last_hidden_state for part in parts])
    self._joint = torch.cat([part.image_embeds for part in parts])

  def train(self, rows: Rows) -> Trained:
    """Trains all clients in every step, with stacked parameters."""
    steps, clients, _ = rows.image.shape
    optim = self._config.optim
    prompter = self._prompter(clients)
    optimizer = torch.optim.AdamW(
      parameter_groups(prompter, optim),
      betas=(optim.b1, optim.b2),
      weight_decay=optim.weight_decay,
      fused=True,
    )
    losses = []
    for step in range(steps):
      losses.append(self._gradients(prompter, _at(rows, step)))
      _clip(prompter, optim.clip_norm)
      optimizer.step()
      optimizer.zero_grad()
    return Trained(torch.stack(losses).numpy(), prompter.leaves())

  @torch.inference_mode()
  def generate(self, rows: Rows, beams: int, tokens: int) -> Int[np.ndarray, "n t"]:
    """Generates with transformers and the untrained prompter; beams share the cross-attention."""
    batch = Rows(*(x[:1] for x in _at(rows, 0)))
    prefix = self._prompt(self._prompter(1), batch).prefix[0]
    words, mask = batch.instruction[0], batch.instruction_mask[0]
    states = self._frozen_t5.encode(prefix, words, mask)
    seen = torch.cat([mask.new_ones(prefix.shape[:2]), mask], 1)
    for cross in self._cross:
      cross.attend_to(states, seen)
    ids = self._t5.generate(
      encoder_outputs=BaseModelOutput(last_hidden_state=states),
      attention_mask=seen.long(),
      num_beams=beams,
      do_sample=False,
      min_new_tokens=tokens,
      max_new_tokens=tokens,
    )
    return ids[:, 1:].numpy()

  def _prompter(self, clients: int) -> Prompter:
    stacked = _repeated(self._params, clients)
    return Prompter(self._config, self._t5.get_input_embeddings().weight, stacked)

  def _prompt(self, prompter: Prompter, batch: Rows) -> Prompted:
    tokens, joint = self._tokens[batch.image].float(), self._joint[batch.image].float()
    prompted = prompter(tokens, joint, batch.text, batch.personal)
    return prompted._replace(prefix=prompted.prefix.to(self._dtype))

  def _gradients(self, prompter: Prompter, batch: Rows) -> Float[Tensor, " c"]:
    """Computes the gradients of all clients, and returns their cross-entropies."""
    clients, size = batch.personal.shape
    prompted = self._prompt(prompter, batch)
    prefix = prompted.prefix.flatten(0, 1)
    text = [x.flatten(0, 1) for x in batch[2:6]]  # instruction to targets_mask
    lengths = batch.targets_mask.sum(-1)
    weights = (1 / lengths.sum(-1)).repeat_interleave(size)
    lengths = lengths.flatten()
    # Each chunk yields a complete gradient for its prefixes; nothing else of it is stored.
    nats, grads, order = torch.empty(len(prefix)), torch.empty_like(prefix), lengths.argsort()
    for chunk in _chunks(order, self._chunk):
      made = prefix.detach()[chunk].requires_grad_()
      instruction, instruction_mask, targets, targets_mask = (x[chunk] for x in text)
      longest = -(-int(lengths[chunk[-1]]) // self._cut) * self._cut
      targets, targets_mask = targets[:, :longest], targets_mask[:, :longest]
      of_rows = self._frozen_t5.nats(made, instruction, instruction_mask, targets, targets_mask)
      (grads[chunk],) = torch.autograd.grad((weights[chunk] * of_rows).sum(), made)
      nats[chunk] = of_rows.detach()
    balance = self._config.optim.balance * prompted.balance.sum()
    torch.autograd.backward([prefix, balance], [grads, None])
    return (weights * nats).view(clients, size).sum(1)


class _SharedCross(nn.Module):
  """Cross-attention of transformers' T5 with keys and values shared by the beams of a row.

  In transformers every beam has its own copies, which are reordered at every token.
  """

  def __init__(self, attention: nn.Module):
    super().__init__()
    self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o
    self._heads = attention.n_heads

  def attend_to(self, states: Float[Tensor, "b l d"], seen: Bool[Tensor, "b l"]) -> None:
    """Computes the keys and values for the next texts."""
    self._keys = self._by_head(self.k(states)).contiguous()
    self._values = self._by_head(self.v(states)).contiguous()
    self._seen = None if seen.all() else seen[:, None, None]

  def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None, None]:
    """Attends from the newest token of every beam, as transformers' `T5Attention` would."""
    queries = self._by_head(self.q(hidden_states).view(len(self._keys), -1, self.q.out_features))
    mixed = F.scaled_dot_product_attention(
      queries, self._keys, self._values, attn_mask=self._seen, scale=1.0
    )
    return self.o(mixed.transpose(1, 2).reshape(*hidden_states.shape[:2], -1)), None, None

  def _by_head(self, x: Tensor) -> Float[Tensor, "b h l e"]:
    return x.unflatten(-1, (self._heads, -1)).transpose(1, 2)


def _quicken(t5: T5ForConditionalGeneration) -> list[_SharedCross]:
  """Replaces a T5's activation by one operation, and its cross-attention by a shared one."""
  for block in [*t5.encoder.block, *t5.decoder.block]:
    block.layer[-1].DenseReluDense.act = nn.GELU(approximate="tanh")
  for block in t5.decoder.block:
    block.layer[1].EncDecAttention = _SharedCross(block.layer[1].EncDecAttention)
  return [block.layer[1].EncDecAttention for block in t5.decoder.block]


def _clip(prompter: Prompter, most: float) -> None:
  """Clips the norm of each client's gradients."""
  grads = [parameter.grad for parameter in prompter.parameters()]
  norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads])
  factors = (most / torch.linalg.vector_norm(norms, dim=0)).clamp_(max=1.0)
  for grad in grads:
    grad *= factors.view(-1, *[1] * (grad.ndim - 1))


def _chunks(order: Int[Tensor, " b"], most: int) -> list[Tensor]:
  """Splits rows into as few chunks of at most `most` rows as possible, of equal size."""
  number = -(-len(order) // most) if most else 1
  return list(order.tensor_split(number))


def _at(rows: Rows, step: int) -> Rows:
  return Rows(*(torch.tensor(x[step]) for x in rows))


def _repeated(leaves: Leaves, clients: int) -> Leaves:
  return {
    name: _repeated(value, clients)
    if isinstance(value, Mapping)
    else np.broadcast_to(value, (clients, *value.shape))
    for name, value in leaves.items()
  }
