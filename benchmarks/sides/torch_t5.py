"""A frozen T5 in as few PyTorch operations as possible, with which P2 trains.

It avoids these costs of transformers' modules: an activation in eight operations, position biases
and masks computed in every layer, norms that store more than their backward pass needs, logits at
padding, and probabilities that are written and read several times.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import T5ForConditionalGeneration

_HIDDEN = torch.finfo(torch.bfloat16).min  # finite in float32 too

# Tokens whose logits are computed at a time: few enough to stay in the processor's cache.
_HEAD_TOKENS = 128


class _Attention(NamedTuple):
  """Kernels of one attention, stored as in `nn.Linear`: outputs first."""

  into: Tensor  # queries, keys and values of self-attention; only queries of cross-attention
  out: Tensor
  keys_values: Tensor | None = None  # of cross-attention


class _Layer(NamedTuple):
  """Kernels of one layer; the scales of the norms are multiplied into them."""

  self_attention: _Attention
  cross_attention: _Attention | None
  activated: Tensor
  gate: Tensor
  out: Tensor


class FrozenT5:
  """Encoder, decoder and head of a gated T5, differentiable only in the encoder's input.

  Args:
    t5: a frozen model of transformers; it is not changed.
    compile: compile encoder and decoder, once for every new shape.

  Raises:
    NotImplementedError: a variant of T5 that no case uses.
  """

  def __init__(self, t5: T5ForConditionalGeneration, compile: bool = False):
    config = t5.config
    if config.dense_act_fn != "gelu_new" or not config.is_gated_act:
      raise NotImplementedError(f"T5: expected gated gelu_new; got {config.feed_forward_proj!r}")
    if config.scale_decoder_outputs:
      raise NotImplementedError("T5: expected a head without scale")
    self.epsilon, self._heads = config.layer_norm_epsilon, config.num_heads
    self._embedding = t5.shared.weight.detach()
    self._position = {side: getattr(t5, side).block[0] for side in ("encoder", "decoder")}
    self._biases: dict[tuple[str, int], Tensor] = {}
    with torch.no_grad():
      self._encoder = [_layer(block.layer) for block in t5.encoder.block]
      self._decoder = [_layer(block.layer) for block in t5.decoder.block]
      self._encoder_scale = t5.encoder.final_layer_norm.weight.detach()
      self._head = t5.lm_head.weight * t5.decoder.final_layer_norm.weight
    # fullgraph: with too many shapes, torch would otherwise continue without compiling.
    compiled = torch.compile(self._forward, dynamic=False, fullgraph=True) if compile else None
    self._run = compiled or self._forward

  def frozen(self) -> dict[str, Tensor]:
    """Returns all tensors derived from the model."""
    out = {"embedding": self._embedding, "encoder_scale": self._encoder_scale, "head": self._head}
    for side, layers in (("encoder", self._encoder), ("decoder", self._decoder)):
      for i, (self_attention, cross_attention, *mlp) in enumerate(layers):
        kernels = [*self_attention, *(cross_attention or ()), *mlp]
        given = [kernel for kernel in kernels if kernel is not None]
        out |= {f"{side}.{i}.{j}": kernel for j, kernel in enumerate(given)}
    return out

  def nats(
    self,
    prefix: Float[Tensor, "b x d"],
    instruction: Int[Tensor, "b l"],
    instruction_mask: Bool[Tensor, "b l"],
    targets: Int[Tensor, "b t"],
    targets_mask: Bool[Tensor, "b t"],
  ) -> Float[Tensor, " b"]:
    """Returns each row's cross-entropy, summed over its tokens; differentiable in `prefix`.

    Args:
      prefix: vectors before the instruction.
      instruction: token ids after the prefix.
      instruction_mask: true at tokens.
      targets: token ids, cut to the longest row.
      targets_mask: true at tokens.
    """
    inputs, bias, cross_bias = self._inputs(prefix, instruction, instruction_mask)
    shifted = F.pad(targets[:, :-1], (1, 0))
    hidden = self._run(inputs, bias, shifted, self._bias("decoder", targets.shape[1]), cross_bias)
    at = targets_mask.flatten().nonzero().squeeze(1)
    kept = _Normed.apply(hidden.flatten(0, 1).index_select(0, at), self.epsilon)
    nats = _TokenNats.apply(kept, self._head, targets.flatten()[at])
    row = at.div(targets.shape[1], rounding_mode="floor")
    return nats.new_zeros(len(targets)).index_add(0, row, nats)

  def encode(
    self,
    prefix: Float[Tensor, "b x d"],
    instruction: Int[Tensor, "b l"],
    instruction_mask: Bool[Tensor, "b l"],
  ) -> Float[Tensor, "b xl d"]:
    """Returns the encoder's states of `[prefix ; instruction]`."""
    return self._encode(*self._inputs(prefix, instruction, instruction_mask)[:2])

  def _inputs(
    self, prefix: Tensor, instruction: Tensor, mask: Tensor
  ) -> tuple[Tensor, Tensor, Tensor | None]:
    inputs = torch.cat([prefix, F.embedding(instruction, self._embedding)], 1)
    bias = self._bias("encoder", inputs.shape[1])
    if mask.all():
      return inputs, bias, None
    hidden = bias.new_zeros(mask.shape).masked_fill_(~mask, _HIDDEN)
    cross_bias = F.pad(hidden, (prefix.shape[1], 0))[:, None, None]
    return inputs, bias + cross_bias, cross_bias

  def _bias(self, side: str, length: int) -> Float[Tensor, "1 h l l"]:
    if (side, length) not in self._biases:
      attention = self._position[side].layer[0].SelfAttention
      # Also usable in training if the first call is in inference mode.
      with torch.inference_mode(False), torch.no_grad():
        bias = attention.compute_bias(length, length).contiguous()
        if side == "decoder":
          bias = bias + bias.new_full((length, length), _HIDDEN).triu_(1)
      self._biases[side, length] = bias
    return self._biases[side, length]

  def _forward(
    self, x: Tensor, bias: Tensor, ids: Tensor, causal: Tensor, cross_bias: Tensor | None
  ) -> Float[Tensor, "b t d"]:
    states = self._encode(x, bias)
    x = F.embedding(ids, self._embedding)
    for layer in self._decoder:
      x = self._attend_self(layer.self_attention, x, causal)
      x = self._attend_cross(layer.cross_attention, x, states, cross_bias)
      x = self._transform(layer, x)
    return x

  def _encode(self, x: Tensor, bias: Tensor) -> Tensor:
    for layer in self._encoder:
      x = self._transform(layer, self._attend_self(layer.self_attention, x, bias))
    return _Normed.apply(x, self.epsilon) * self._encoder_scale

  def _attend_self(self, kernels: _Attention, x: Tensor, bias: Tensor) -> Tensor:
    queries, keys, values = self._heads_of(F.linear(self._normed(x), kernels.into), 3).unbind(2)
    return _mix(kernels, x, queries, keys, values, bias)

  def _attend_cross(
    self, kernels: _Attention, x: Tensor, states: Tensor, bias: Tensor | None
  ) -> Tensor:
    queries = self._heads_of(F.linear(self._normed(x), kernels.into), 1).squeeze(2)
    keys, values = self._heads_of(F.linear(states, kernels.keys_values), 2).unbind(2)
    return _mix(kernels, x, queries, keys, values, bias)

  def _transform(self, layer: _Layer, x: Tensor) -> Tensor:
    normed = self._normed(x)
    activated = F.gelu(F.linear(normed, layer.activated), approximate="tanh")
    return _added(x, activated * F.linear(normed, layer.gate), layer.out)

  def _normed(self, x: Tensor) -> Tensor:
    return _Normed.apply(x, self.epsilon)

  def _heads_of(self, x: Tensor, parts: int) -> Float[Tensor, "b l parts h e"]:
    return x.view(*x.shape[:2], parts, self._heads, -1)


def _mix(
  kernels: _Attention, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
  queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
  # T5 does not scale the scores.
  mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)
  return _added(x, mixed.transpose(1, 2).flatten(2), kernels.out)


def _added(x: Tensor, h: Tensor, kernel: Tensor) -> Tensor:
  """Returns `x + h @ kernel.T` without a separate pass over memory for the sum."""
  return torch.addmm(x.flatten(0, 1), h.flatten(0, 1), kernel.t()).view_as(x)


def _layer(parts: torch.nn.ModuleList) -> _Layer:
  """Reads a block of transformers' T5; multiplies each norm's scale into the next kernels."""
  own, scale = parts[0].SelfAttention, parts[0].layer_norm.weight
  into = torch.cat([own.q.weight, own.k.weight, own.v.weight]) * scale
  self_attention, cross_attention = _Attention(into, own.o.weight.detach()), None
  if len(parts) == 3:
    cross, scale = parts[1].EncDecAttention, parts[1].layer_norm.weight
    keys_values = torch.cat([cross.k.weight, cross.v.weight])
    into = cross.q.weight * scale
    cross_attention = _Attention(into, cross.o.weight.detach(), keys_values)
  mlp, scale = parts[-1].DenseReluDense, parts[-1].layer_norm.weight
  activated, gate = mlp.wi_0.weight * scale, mlp.wi_1.weight * scale
  return _Layer(self_attention, cross_attention, activated, gate, mlp.wo.weight.detach())


class _Normed(torch.autograd.Function):
  """Scales `x` to root mean square 1; the backward pass stores the result and a number per row."""

  @staticmethod
  def forward(ctx, x: Tensor, epsilon: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    factor = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(epsilon)).to(x.dtype)
    y = x * factor
    ctx.save_for_backward(y, factor)
    return y

  @staticmethod
  def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
    y, factor = ctx.saved_tensors
    mean = (grad * y).mean(-1, keepdim=True)
    return torch.addcmul(grad, y, mean, value=-1).mul_(factor), None


class _TokenNats(torch.autograd.Function):
  """Cross-entropy of each token; the gradient is computed with the loss, from the same logits.

  Logits and probabilities are in float32, in whatever dtype the products are.
  """

  @staticmethod
  def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    nats, grad = torch.empty(len(hidden)), torch.empty_like(hidden)
    for start in range(0, len(hidden), _HEAD_TOKENS):
      part = slice(start, start + _HEAD_TOKENS)
      logits, target = (hidden[part] @ head.t()).float(), targets[part, None].long()
      logits -= logits.amax(1, keepdim=True)
      at_target = logits.gather(1, target)
      probabilities = logits.exp_()
      total = probabilities.sum(1, keepdim=True)
      torch.sub(total.log(), at_target, out=nats[part, None])
      probabilities /= total
      probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
      torch.mm(probabilities.to(head.dtype), head, out=grad[part])
    ctx.save_for_backward(grad)
    return nats

  @staticmethod
  def backward(ctx, weights: Tensor) -> tuple[Tensor, None, None]:
    (grad,) = ctx.saved_tensors
    return grad * weights[:, None].to(grad.dtype), None, None
