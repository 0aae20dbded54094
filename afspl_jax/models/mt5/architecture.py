"""mT5 (Xue et al. 2021) for the loader: a T5 under another name, with a larger vocabulary."""

from afspl_jax.models.t5 import architecture

ARCHITECTURE = architecture.ARCHITECTURE._replace(
  model_type="mt5", tokenizers=("T5Tokenizer", "MT5Tokenizer")
)
