"""GGUF files of Llamas: the tensors that transformers makes of them, and the model's own tokens."""

import json
import struct
import sys

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.checkpoint_files import open_tensors
from afspl_jax.models.huggingface.checkpoint_problems import BackboneError
from afspl_jax.models.huggingface.fingerprint import fingerprint
from afspl_jax.models.huggingface.gguf_folder import gguf_folder
from afspl_jax.models.huggingface.gguf_header import GgufHeader
from afspl_jax.models.huggingface.locate import locate
from tests.models import gguf_llama


def tensors(folder) -> dict[str, np.ndarray]:
  problems: list[str] = []
  found = open_tensors(folder, problems)
  assert not problems and found is not None
  for key, tensor in found.items():
    assert tensor.shape == found.shape(key)
  return dict(found)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  return gguf_llama.write(tmp_path_factory.mktemp("gguf") / "m.gguf", gguf_llama.weights())


@pytest.mark.parametrize("quant", gguf_llama.QUANTS)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_transformers(quant, tied, tmp_path):
  weights = gguf_llama.weights(tied)
  file = gguf_llama.write(tmp_path / "m.gguf", weights, quant)
  folder = gguf_folder(file, tmp_path)
  config = transformers.LlamaConfig.from_pretrained(folder)
  with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
  reference = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
  ours = tensors(folder)
  assert ours.keys() == reference.keys() == weights.keys()
  for key, tensor in ours.items():
    np.testing.assert_array_equal(tensor.astype(np.float32), reference[key].numpy(), err_msg=key)
    step = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 3e-2}.get(quant, 0.6)
    assert np.abs(tensor.astype(np.float32) - weights[key]).max() <= step, key
  assert config.tie_word_embeddings is tied


def test_config_has_the_fields_of_the_metadata(file, tmp_path):
  config = json.loads((gguf_folder(file, tmp_path) / "config.json").read_text())
  wanted = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-05,  # not float32's 9.999999747378752e-06
    "vocab_size": gguf_llama.bpe().get_vocab_size(),
    "eos_token_id": 0,
    "pad_token_id": 1,
  }
  assert {name: config[name] for name in wanted} == wanted


def test_tokens_are_those_of_the_tokenizer_in_the_file(file, tmp_path):
  ours = transformers.PreTrainedTokenizerFast.from_pretrained(gguf_folder(file, tmp_path))
  own = gguf_llama.bpe()
  for text in (*gguf_llama.TEXTS, "Zwölf  Boxkämpfer\n\n 2026 中文 \U0001f600", "a<|end|>b", ""):
    ids = ours(text).input_ids
    assert ids == own.encode(text).ids
    assert ours.decode(ids) == text
  assert (ours.eos_token_id, ours.pad_token_id) == (0, 1)


def test_a_tokenizer_beside_the_file_is_used(tmp_path):
  change = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": None}
  file = gguf_llama.write(tmp_path / "m.gguf", gguf_llama.weights(), change=change)
  with pytest.raises(BackboneError, match=r"got 'llama' and None. Put the model's tokenizer.json"):
    gguf_folder(file, tmp_path / "made")
  gguf_llama.bpe().save(str(tmp_path / "tokenizer.json"))
  folder = gguf_folder(file, tmp_path / "made")
  assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
  before = fingerprint(folder)
  (tmp_path / "tokenizer.json").unlink()
  gguf_llama.write(file, gguf_llama.weights())  # says all that defines ids
  assert fingerprint(gguf_folder(file, tmp_path / "made")) != before


def test_a_file_is_located_and_its_fingerprint_stays(file, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = locate(str(file), "t5")
  assert folder.is_relative_to(tmp_path) and (folder / "model.gguf").samefile(file)
  first = fingerprint(folder)
  assert fingerprint(locate(str(file), "t5")) == first
  other = gguf_llama.write(tmp_path / "m.gguf", gguf_llama.weights(seed=1))
  assert fingerprint(locate(str(other), "t5")) != first


def test_all_problems_are_named_at_once(tmp_path):
  change = {
    "general.architecture": "qwen2",
    "llama.rope.scaling.type": "yarn",
    "tokenizer.ggml.pre": "qwen2",
  }
  file = gguf_llama.write(tmp_path / "m.gguf", gguf_llama.weights(), change=change)
  with pytest.raises(BackboneError) as error:
    gguf_folder(file, tmp_path)
  for part in ("3 problems", "llama; got 'qwen2'", "without scaling; got 'yarn'", "and 'qwen2'."):
    assert part in str(error.value)


def test_a_missing_size_is_named(tmp_path):
  change = {"llama.embedding_length": None}
  file = gguf_llama.write(tmp_path / "m.gguf", gguf_llama.weights(), change=change)
  with pytest.raises(BackboneError, match="expected hidden_size in its metadata; got none"):
    gguf_folder(file, tmp_path)


def test_without_the_package_the_command_is_named(file, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(UserError, match=r"pip install 'afspl-jax\[gguf\]'"):
    gguf_folder(file, tmp_path)


def test_every_truncation_of_the_header_is_rejected(file, tmp_path):
  data = file.read_bytes()
  cut = tmp_path / "cut.gguf"
  for end in [*range(0, 300, 3), *range(300, len(data), 4999), len(data) - 1]:
    cut.write_bytes(data[:end])
    with pytest.raises(ValueError):
      GgufHeader(cut)


@pytest.mark.parametrize(
  "content, problem",
  [
    (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "9223372036854775808 tensors"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**40), "a text of"),
    (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 0, 2**60), "values in lists"),
    (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 0, 2**20), "within a value"),
    (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 3), "a list of values of type 9"),
    (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 13), "a value of type 13"),
    (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 2**40, 0, 0), "within 'a'"),
    (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 8, 99, 0), "type 99"),
    (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 8, 2, 0), "blocks of 32"),
    (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 5), "of 5 axes"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q1sIB", 1, b"a", 0, 1) * 2, "twice"),
  ],
)
def test_other_content_is_rejected(content, problem, tmp_path):
  (tmp_path / "x.gguf").write_bytes(content)
  with pytest.raises(ValueError, match=problem):
    GgufHeader(tmp_path / "x.gguf")


def test_a_head_count_that_does_not_fit_is_named(tmp_path):
  file = gguf_llama.write(
    tmp_path / "m.gguf", gguf_llama.weights(), change={"llama.attention.head_count": 5}
  )
  problems: list[str] = []
  assert open_tensors(gguf_folder(file, tmp_path), problems) is None
  (problem,) = problems
  assert "'blk.0.attn_q.weight' of (64,) rows for 5 heads" in problem
