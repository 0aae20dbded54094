"""Two checkpoints have one fingerprint only if they give the same numbers."""

import builtins
import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.huggingface.weights import (
  BackboneError,
  earlier_fingerprint,
  fingerprint,
)
from tests.models.saved import change

READ = (  # by transformers' tokenizers and our image processor
  "added_tokens.json",
  "merges.txt",
  "preprocessor_config.json",
  "special_tokens_map.json",
  "spiece.model",
  "tokenizer.4.0.0.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.json",
  "vocab.txt",
)


def test_fingerprint_changes_with_content_only(folder, tmp_path):
  first = fingerprint(folder)
  assert len(first) == 16 and int(first, 16) >= 0
  shutil.copytree(folder, tmp_path / "copy")
  (tmp_path / "copy" / "README.md").write_text("not hashed")
  assert fingerprint(tmp_path / "copy") == first
  data = bytearray((folder / "model.safetensors").read_bytes())
  data[-1] ^= 1
  (folder / "model.safetensors").write_bytes(data)
  assert fingerprint(folder) != first
  config = tmp_path / "copy" / "config.json"
  config.write_text(config.read_text().replace('"num_layers": 1', '"num_layers": 2'))
  assert fingerprint(tmp_path / "copy") != first
  config.unlink()
  with pytest.raises(BackboneError, match=r"config\.json: expected this file"):
    fingerprint(tmp_path / "copy")


def test_fingerprint_covers_every_shard(shards):
  first = fingerprint(shards)
  change(shards, "model-00003-of-00003.safetensors", extra__weight=np.zeros(1, np.float32))
  assert fingerprint(shards) != first


def test_fingerprint_covers_every_file_that_defines_ids_or_pixels(folder):
  seen = {fingerprint(folder)}
  for name in READ:
    for content in ('{"truncation_side": "left"}', '{"truncation_side": "right"}'):
      (folder / name).write_text(content)
      seen.add(fingerprint(folder))
  assert len(seen) == 1 + 2 * len(READ)
  for name in ("README.md", "generation_config.json", "flax_model.msgpack"):
    (folder / name).write_text("{}")
    assert fingerprint(folder) in seen


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_what_a_tokenizer_reads_is_in_the_fingerprint(kind, tmp_path, monkeypatch):
  folder, read = shutil.copytree(TINY / kind, tmp_path / kind), set()
  for name in READ:
    if not (folder / name).exists():
      (folder / name).write_text("{}")
  opened = builtins.open

  def spy(file, *args, **kwargs):
    if str(file).startswith(str(folder)):
      read.add(Path(file).name)
    return opened(file, *args, **kwargs)

  monkeypatch.setattr(builtins, "open", spy)
  monkeypatch.setattr(io, "open", spy)
  Tokenizer(folder)
  assert {"tokenizer_config.json"} <= read <= {*READ, "config.json"}


def test_fingerprint_of_earlier_versions_is_still_known(folder):
  (folder / "tokenizer.json").write_text("{}")
  digest = hashlib.sha256()
  for name in ("config.json", "model.safetensors", "tokenizer.json"):
    data = (folder / name).read_bytes()
    digest.update(f"{name} {len(data)}\n".encode() + data)
  assert earlier_fingerprint(folder) == digest.hexdigest()[:16] == fingerprint(folder)
  (folder / "tokenizer_config.json").write_text("{}")
  assert earlier_fingerprint(folder) == digest.hexdigest()[:16] != fingerprint(folder)
