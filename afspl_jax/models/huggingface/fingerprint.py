"""Identifies a checkpoint by its content."""

import hashlib
from pathlib import Path

from afspl_jax.models.huggingface.checkpoint_files import CONFIG, weight_files
from afspl_jax.models.huggingface.checkpoint_problems import BackboneError, no_file

# A prompter that was trained with other tokens or pixels does not fit, so the files that define
# these count too: all that transformers' tokenizers and our image processor read.
PROCESSING = (
  "preprocessor_config.json",
  "tokenizer*.json",  # tokenizer_config.json may name tokenizer.4.0.0.json and the like
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.*",
  "merges.txt",
  "*.model",  # of sentencepiece
)
_EARLIER = ("preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt")


def fingerprint(folder: str | Path) -> str:
  """Identifies a checkpoint by its content, so that two sites can check that they have the same.

  Args:
    folder: the checkpoint.

  Returns:
    The first 16 hexadecimal digits of the SHA-256 of config.json, the weight files, and the files
    that define tokens and pixels.

  Raises:
    BackboneError: one of the files is missing.
  """
  folder = Path(folder)
  named = (folder.glob(pattern) for pattern in PROCESSING)
  return _hash(folder, sorted({path for found in named for path in found if path.is_file()}))


def earlier_fingerprint(folder: str | Path) -> str:
  """The fingerprint in files of earlier versions, which covered fewer files.

  Args:
    folder: the checkpoint.

  Raises:
    BackboneError: one of the files is missing.
  """
  folder = Path(folder)
  return _hash(folder, [folder / name for name in _EARLIER if (folder / name).is_file()])


def _hash(folder: Path, processing: list[Path]) -> str:
  if not (folder / CONFIG).is_file():
    raise BackboneError(folder, [no_file(CONFIG)])
  digest = hashlib.sha256()
  for path in [folder / CONFIG, *weight_files(folder), *processing]:
    digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    with path.open("rb") as file:
      while block := file.read(1 << 20):
        digest.update(block)
  return digest.hexdigest()[:16]
