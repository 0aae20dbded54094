"""A small random Llama as a GGUF file, written by the package `gguf` as llama.cpp writes one."""

import json
from pathlib import Path

import gguf
import numpy as np
import tokenizers

WIDTH, HEADS, GROUPS, LAYERS, MLP = 64, 4, 2, 2, 96
TEXTS = (
  "the red disc is above 12 blue squares .",
  "two, or 1,234 of them !",
  "the disc, the square",
)
QUANTS = {
  name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
}


def bpe() -> tokenizers.Tokenizer:
  """A tokenizer in the form of SmolLM2's."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  pre = tokenizers.pre_tokenizers
  made.pre_tokenizer = pre.Sequence(
    [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<|end|>", "<|pad|>"],
    initial_alphabet=pre.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(TEXTS, trainer)
  return made


def weights(tied: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
  """Random weights of a `LlamaForCausalLM`, by its keys."""
  rng, vocabulary = np.random.default_rng(seed), bpe().get_vocab_size()
  kv = WIDTH * GROUPS // HEADS
  shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
  for i in range(LAYERS):
    at = f"model.layers.{i}."
    shapes |= {f"{at}{n}.weight": (WIDTH,) for n in ("input_layernorm", "post_attention_layernorm")}
    for name, rows in {"q": WIDTH, "k": kv, "v": kv, "o": WIDTH}.items():
      shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, WIDTH)
    shapes |= {f"{at}mlp.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")}
    shapes[f"{at}mlp.down_proj.weight"] = (WIDTH, MLP)
  if not tied:
    shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
  return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
  """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
  cut = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
  return cut.swapaxes(1, 2).reshape(rows.shape)


def write(
  file: Path, tensors: dict[str, np.ndarray], quant: str = "F32", change: dict | None = None
) -> Path:
  """Writes the file; `change` replaces metadata, or leaves it out where it is None."""
  made, name_map = bpe(), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
  vocabulary = sorted(made.get_vocab().items(), key=lambda item: item[1])
  merges = json.loads(made.to_str())["model"]["merges"]
  metadata = {
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": MLP,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.rope.freq_base": 50000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": WIDTH // HEADS,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
    "tokenizer.ggml.token_type": [3, 3, *([1] * (len(vocabulary) - 2))],
    "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.padding_token_id": 1,
  } | (change or {})
  architecture = metadata.pop("general.architecture", "llama")
  writer = gguf.GGUFWriter(file, architecture)
  for name, value in metadata.items():
    if isinstance(value, list):
      writer.add_array(name, value)
    elif value is not None:
      add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
      add[type(value)](name, value)
  for key, tensor in tensors.items():
    if ".q_proj" in key or ".k_proj" in key:
      tensor = permuted(tensor, HEADS if ".q_proj" in key else GROUPS)
    kind = QUANTS[quant] if tensor.ndim > 1 else QUANTS["F32"]
    name = name_map.get_name(key, try_suffixes=(".weight", ".bias")) or key
    data = gguf.quants.quantize(tensor, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file
