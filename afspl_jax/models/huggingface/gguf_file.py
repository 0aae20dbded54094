"""Weights of a Llama in a GGUF file, dequantised when read."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from afspl_jax.models.huggingface.gguf_header import GgufHeader

# Of llama.cpp's convert_hf_to_gguf.py, in the other direction.
_NAMES = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)")
_HALVES = {"attn_q": "head_count", "attn_k": "head_count_kv"}  # by the heads that they have
_KEPT = {0: "F32", 1: "F16", 30: "BF16"}  # types that are not quantised
_DEQUANTISED = (2, 3, 6, 7, 8, 10, 11, 12, 13, 14)  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


class GgufFile:
  """An opened GGUF file, whose tensors have the keys of Hugging Face's `LlamaForCausalLM`.

  Args:
    file: the file.

  Raises:
    ValueError: it is damaged.
    OSError: it cannot be read.
  """

  def __init__(self, file: Path):
    self._header = GgufHeader(file)
    self._names = {torch_key(name): name for name in self._header.tensors}
    if len(self._names) != len(self._header.tensors):
      raise ValueError("two tensors for one weight")
    for name in self._header.tensors:
      self._heads(name)  # so that a wrong number is reported with the rest of the file

  def keys(self) -> list[str]:
    """The keys of all tensors."""
    return list(self._names)

  def shape(self, key: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it."""
    return self._header.tensors[self._names[key]].shape

  def dtype(self, key: str) -> str:
    """The type of a tensor once it is read: F32 of one that can be dequantised."""
    type_ = self._header.tensors[self._names[key]].type
    other = "F32" if type_ in _DEQUANTISED else f"GGML type {type_}"
    return _KEPT.get(type_, other)

  def tensor(self, key: str) -> np.ndarray:
    """Reads and dequantises a tensor."""
    import gguf

    name = self._names[key]
    found = self._header.tensors[name]
    if found.type in _KEPT:
      dtype = np.dtype(_DTYPES[_KEPT[found.type]])
      count = found.size // dtype.itemsize
      array = np.frombuffer(self._header.data, dtype, count, found.start)
    else:
      rows = int(np.prod(found.shape[:-1]))
      raw = np.frombuffer(self._header.data, np.uint8, found.size, found.start)
      type_ = gguf.GGMLQuantizationType(found.type)
      with np.errstate(all="ignore"):  # what is no weight is reported by the loader
        array = gguf.quants.dequantize(raw.reshape(rows, found.size // rows), type_)
    array = array.reshape(found.shape)
    heads = self._heads(name)
    return _whole_heads(array, heads) if heads else array

  def _heads(self, name: str) -> int:
    """The heads of a tensor whose rows GGUF has in another order; 0 for any other tensor."""
    layer = _LAYER.fullmatch(name)
    if layer is None or layer[2] not in _HALVES:
      return 0
    metadata, rows = self._header.metadata, self._header.tensors[name].shape[:1]
    all_heads = metadata.get("llama.attention.head_count")
    heads = metadata.get(f"llama.attention.{_HALVES[layer[2]]}", all_heads)
    if type(heads) is not int or heads < 1 or not rows or rows[0] % (2 * heads):
      raise ValueError(f"{name!r} of {rows} rows for {heads!r} heads")
    return heads


def torch_key(name: str) -> str:
  """Hugging Face's key of a tensor; the same name if it is of no Llama."""
  if layer := _LAYER.fullmatch(name):
    number, part, kind = layer.groups()
    return f"model.layers.{int(number)}.{_LAYER_NAMES.get(part, part)}.{kind}"
  return _NAMES.get(name, name)


def _whole_heads(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys in Hugging Face's order.

  Rotary embeddings of GGUF's Llama rotate neighbours, and those of Hugging Face the two halves of a
  head, so that convert_hf_to_gguf.py takes rows of both halves by turns.
  """
  rows = array.shape[0]
  turned = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2)
  return turned.reshape(array.shape)
