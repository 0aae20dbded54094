"""Makes the folder of a checkpoint for a GGUF file: what it lacks is in the file's metadata."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.checkpoint_problems import BackboneError, unreadable_file
from afspl_jax.models.huggingface.gguf_header import GgufHeader
from afspl_jax.storage.atomic_files import write_text

WEIGHTS = "model.gguf"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens
_SIZES = {
  "hidden_size": "embedding_length",
  "intermediate_size": "feed_forward_length",
  "num_hidden_layers": "block_count",
  "num_attention_heads": "attention.head_count",
  "num_key_value_heads": "attention.head_count_kv",
  "head_dim": "rope.dimension_count",
  "max_position_embeddings": "context_length",
}
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# How a text is split before its pairs are merged, by `tokenizer.ggml.pre`; of the tokenizer.json of
# such models. That of another model would give other ids, so it must lie beside the file.
_SPLITS = {
  "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]},
  "gpt-2": _BYTES,
}


def gguf_folder(file: Path, cache: Path) -> Path:
  """Makes a folder with config.json, the tokenizer's files, and the GGUF file as weights.

  Args:
    file: a GGUF file of a Llama. Tokenizer files beside it are used instead of its metadata.
    cache: the folder in which it is made; anew at each call, which takes a part of a second.

  Raises:
    BackboneError: the file has problems.
    UserError: the package `gguf` is not installed, or the folder cannot be written.
  """
  try:
    header = GgufHeader(file)
  except UserError:
    raise
  except (ValueError, OSError) as error:
    raise BackboneError(file, [unreadable_file(file, "GGUF file", error)]) from error
  problems: list[str] = []
  texts = {"config.json": _config(header, problems)}
  beside = [file.with_name(name) for name in _TOKENIZER if file.with_name(name).is_file()]
  if not beside:
    texts |= _tokenizer(header.metadata, problems)
  if problems:
    raise BackboneError(file, problems)
  identity = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
  folder = cache / identity
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
      if (folder / name).is_symlink() or (beside and (folder / name).exists()):
        (folder / name).unlink()
    for name, value in texts.items():
      write_text(folder / name, json.dumps(value, indent=1, sort_keys=True) + "\n")
    for name, path in [(WEIGHTS, file), *((path.name, path) for path in beside)]:
      _link(folder / name, path.resolve())
  except OSError as error:
    raise UserError(f"{folder}: expected a folder that can be written; got: {error}") from error
  return folder


def _link(name: Path, target: Path) -> None:
  scratch = name.with_name(f"{name.name}.{os.getpid()}")
  scratch.symlink_to(target)
  os.replace(scratch, name)


def _config(header: GgufHeader, problems: list[str]) -> dict[str, Any]:
  """The config.json of a Llama."""
  metadata, kind = header.metadata, header.metadata.get("general.architecture")
  if kind != "llama":
    problems.append(
      f'expected "general.architecture" llama; got {kind!r:.60}. Take a checkpoint in safetensors.'
    )
  scaling = metadata.get("llama.rope.scaling.type", "none")
  if scaling != "none" or "rope_freqs.weight" in header.tensors:
    problems.append(
      f"expected rotary embeddings without scaling; got {scaling!r:.60}, or rope_freqs. Take a"
      " checkpoint in safetensors, whose config.json says how they are scaled."
    )
  stated = {name: metadata.get(f"llama.{theirs}") for name, theirs in _SIZES.items()}
  tokens = metadata.get("tokenizer.ggml.tokens")
  vocabulary = len(tokens) if isinstance(tokens, list) else None
  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **{name: value for name, value in stated.items() if value is not None},
    "vocab_size": metadata.get("llama.vocab_size", vocabulary),
    "rms_norm_eps": _decimal(metadata.get("llama.attention.layer_norm_rms_epsilon")),
    "rope_theta": _decimal(metadata.get("llama.rope.freq_base", 10000.0)),
    "hidden_act": "silu",
    "attention_bias": "blk.0.attn_q.bias" in header.tensors,
    "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    "tie_word_embeddings": "output.weight" not in header.tensors,
    **_ids(metadata),
  }
  needed = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
  wrong = [name for name in needed if type(config.get(name)) is not int]
  wrong += [name for name, value in config.items() if isinstance(value, np.ndarray)]
  if kind == "llama" and wrong:
    problems.append(f"expected {', '.join(wrong)} in its metadata; got none. Take another file.")
  return config


def _decimal(value: Any) -> Any:
  """A float32 as people wrote it: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
  names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
  found = {name: metadata.get(f"tokenizer.ggml.{part}_token_id") for name, part in names.items()}
  return {name: value for name, value in found.items() if value is not None}


def _tokenizer(metadata: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """tokenizer.json and tokenizer_config.json, if the metadata says all that defines ids."""
  model, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
  tokens = metadata.get("tokenizer.ggml.tokens")
  merges = metadata.get("tokenizer.ggml.merges")
  types = metadata.get("tokenizer.ggml.token_type")
  if model != "gpt2" or split not in _SPLITS:
    problems.append(
      f"expected a tokenizer of kind gpt2 that splits texts as {' or '.join(_SPLITS)}; got"
      f" {model!r:.60} and {split!r:.60}. Put the model's tokenizer.json and tokenizer_config.json"
      " beside the file."
    )
    return {}
  if not (
    isinstance(tokens, list)
    and isinstance(merges, list)
    and all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges)
    and isinstance(types, np.ndarray)
    and len(types) == len(tokens) == len(set(tokens))
  ):
    problems.append("expected tokens, their types and merges in its metadata; got others.")
    return {}
  added = [
    _added(i, tokens[i], int(types[i]) == _CONTROL)
    for i in np.flatnonzero(np.isin(types, (_CONTROL, _USER_DEFINED))).tolist()
  ]
  settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
  for name, part in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
    number = metadata.get(f"tokenizer.ggml.{part}_token_id")
    if type(number) is int and 0 <= number < len(tokens):
      settings[f"{name}_token"] = tokens[number]
  tokenizer = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": None,
    "pre_tokenizer": _SPLITS[split],
    "post_processor": None,
    "decoder": _BYTES,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": {token: i for i, token in enumerate(tokens)},
      "merges": [merge.split(" ") for merge in merges],
    },
  }
  return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
  plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  return {"id": number, "content": token, "special": special} | plain
