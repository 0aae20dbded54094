"""Small random decoder-only models of transformers, by kind, and ours from their checkpoints."""

from pathlib import Path

import torch
import transformers

from afspl_jax.models.decoder_only import DecoderOnly
from afspl_jax.models.huggingface.weights import load_language_model

LLAMA = {
  "vocab_size": 40,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "max_position_embeddings": 64,
  "bos_token_id": 3,
  "eos_token_id": 1,
}
STRETCHED = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
GPT2 = {
  "vocab_size": 40,
  "n_embd": 16,
  "n_layer": 2,
  "n_head": 2,
  "n_positions": 64,
  "bos_token_id": 3,
  "eos_token_id": 1,
}
LLAMAS = {
  "llama: untied head, no grouped queries": {"rms_norm_eps": 1e-3},
  "llama: tied head, two queries a key (SmolLM2)": {
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_theta": 100000.0,
  },
  "llama: stretched rotations (Llama 3), biases, keys shared by all": {
    "num_key_value_heads": 1,
    "head_dim": 12,
    "attention_bias": True,
    "mlp_bias": True,
    "hidden_act": "gelu",
    "rope_parameters": STRETCHED,
  },
}
GPT2S = {"gpt2": {}, "gpt2: another MLP": {"n_inner": 20, "activation_function": "relu"}}
VARIANTS = [*LLAMAS, *GPT2S]


def reference(name: str, **changes: object) -> transformers.PreTrainedModel:
  """The model of transformers, not yet randomised, with changes to its config."""
  if name in LLAMAS:
    config = transformers.LlamaConfig(**LLAMA | LLAMAS[name] | changes)
    return transformers.LlamaForCausalLM(config)
  return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | GPT2S[name] | changes))


def load(model: torch.nn.Module, folder: Path) -> DecoderOnly:
  """Ours, from the checkpoint that transformers saves."""
  model.save_pretrained(folder)
  return load_language_model(folder)


def left_padded(embeddings: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """Moves what `mask` hides to the left, as transformers' generate takes it."""
  order = torch.argsort(mask.long(), dim=1, stable=True)
  moved = torch.take_along_dim(embeddings, order[..., None], dim=1)
  return moved, torch.take_along_dim(mask, order, dim=1)
