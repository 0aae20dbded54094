"""Tokenizer folders as they differ, and texts that look like control tokens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.locate import TINY
from afspl_jax.models.huggingface.preprocessing import Tokenizer

# sentencepiece 0.2.1 on the spiece.model of T5, with the end token. It has no piece for "<".
SENTENCEPIECE = {
  "a </s> b": [3, 9, 3, 2, 87, 7, 3155, 3, 115, 1],
  "x<pad>y": [3, 226, 2, 5612, 3155, 63, 1],
  "<extra_id_0> cat": [3, 2, 25666, 834, 23, 26, 834, 632, 3155, 1712, 1],
  "<unk>": [3, 2, 6513, 3155, 1],
  "</s>": [3, 2, 87, 7, 3155, 1],
  "is this</s> a <pad> cat ?": [19, 48, 2, 87, 7, 3155, 3, 9, 3, 2, 5612, 3155, 1712, 3, 58, 1],
}
TEXTS = [*SENTENCEPIECE, "a <|endoftext|> b", "<|startoftext|>", "<|ENDOFTEXT|>", "<extra_id_99>"]


@pytest.fixture
def copy(tmp_path):
  """Copies a tokenizer's folder, with keys of its tokenizer_config.json changed."""

  def apply(source: Path, **changed) -> Path:
    folder = shutil.copytree(source, tmp_path / source.name)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder

  return apply


@pytest.mark.parametrize("named", [{}, {"tokenizer_class": "T5Tokenizer"}])
def test_names_of_t5s_control_tokens_have_the_ids_of_sentencepiece(hf_data, copy, named):
  tokenizer = Tokenizer(copy(hf_data / "t5", **named))
  ids, mask = tokenizer.tokenize(list(SENTENCEPIECE), 24)
  got = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
  assert got == list(SENTENCEPIECE.values())


@pytest.mark.parametrize("place", ["tiny/t5", "tiny/clip", "hf/t5", "hf/clip"])
def test_names_of_control_tokens_are_text(request, place):
  base, _, name = place.partition("/")
  folder = (TINY if base == "tiny" else request.getfixturevalue("hf_data")) / name
  tokenizer = Tokenizer(folder)
  assert tokenizer.vocab_size == len(tokenizer.vocabulary)
  ids, mask = tokenizer.tokenize(TEXTS, 64)
  first = 1 if name == "clip" else 0
  for row, seen in zip(ids, mask, strict=True):
    assert row[seen][-1] == tokenizer.eos_id and len(row[seen]) > 2
    inner = row[seen][first:-1].tolist()
    assert not {tokenizer.eos_id, tokenizer.pad_id, int(row[0]) if first else -1} & set(inner)
  if name == "clip":  # it has a piece for every byte
    squeezed = [text.replace(" ", "") for text in tokenizer.decode(ids)]
    assert squeezed == [text.replace(" ", "").lower() for text in TEXTS]


def test_every_byte_is_text_for_clip():
  tokenizer = Tokenizer(TINY / "clip")
  texts = [chr(i) for i in range(256)] + [chr(i) + "a" for i in range(256)] + ["\u4e2d\U0001f600"]
  ids, mask = tokenizer.tokenize(texts, 16)
  assert ((ids == tokenizer.eos_id) & mask).sum(axis=1).tolist() == [1] * len(texts)


@pytest.mark.parametrize("kind", ["t5", "clip"])
def test_a_text_keeps_its_beginning_whatever_the_files_say(copy, kind):
  usual = Tokenizer(TINY / kind)
  folder = copy(TINY / kind, truncation_side="left", padding_side="left")
  texts = ["a large red disc on the left of a small blue star", "a"]
  np.testing.assert_array_equal(
    Tokenizer(folder).tokenize(texts, 8), usual.tokenize(texts, 8), strict=True
  )


@pytest.mark.parametrize("kind", ["t5", "clip"])
@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_the_tokenizer_class_of_another_model_is_refused(copy, kind, place):
  folder = copy(TINY / kind, tokenizer_class=None)
  file, other = folder / place, {"t5": "CLIPTokenizer", "clip": "T5TokenizerFast"}[kind]
  for name in (other, "BertTokenizer", "GPT2TokenizerFast"):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))
    with pytest.raises(UserError) as error:
      Tokenizer(folder)
    own = {"t5": "T5Tokenizer, ByT5Tokenizer", "clip": "CLIPTokenizer"}[kind]
    assert f'{folder}: "tokenizer_class" must be {own} or' in str(error.value)
    assert repr(name.removesuffix("Fast")) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["t5", "clip"])
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_the_generic_class_reads_the_same_tokenizer(copy, kind, name):
  generic, own = Tokenizer(copy(TINY / kind, tokenizer_class=name)), Tokenizer(TINY / kind)
  for got, expected in zip(generic.tokenize(TEXTS, 32), own.tokenize(TEXTS, 32), strict=True):
    np.testing.assert_array_equal(got, expected)


def test_a_tokenizer_that_does_not_fit_its_model_is_refused():
  tokenizer = Tokenizer(TINY / "t5")
  tokenizer.check_model("here", 166, 1, 0)
  tokenizer.check_model("here", 256, 1, None)
  Tokenizer(TINY / "clip").check_model("here", 499, None, None)
  for sizes, wanted in (
    ((165, 1, 0), "here: expected a tokenizer with ids below vocab_size, 165; got 165"),
    ((166, 2, 0), "here: expected a tokenizer with eos_token_id 2, .*; got 1"),
    ((166, None, 0), "here: expected a tokenizer with eos_token_id 165, .*; got 1"),
    ((166, 1, 3), "here: expected a tokenizer with pad_token_id 3, .*; got 0"),
  ):
    with pytest.raises(UserError, match=wanted):
      tokenizer.check_model("here", *sizes)


def test_ids_beyond_the_tokenizer_are_counted_up_to_the_end():
  tokenizer = Tokenizer(TINY / "t5")
  (word, *_), _ = (rows[0] for rows in tokenizer.tokenize(["a red disc"], 8))
  ids = np.array([[word, 170, 166, 1, 200], [word, 1, 180, 180, 180], [199, 199, 199, 199, word]])
  assert tokenizer.count_unknown(ids).tolist() == [2, 0, 4]
  assert tokenizer.decode(ids) == tokenizer.decode(np.array([[word], [word], [word]]))


@pytest.mark.parametrize("stated", ["config.json", "tokenizer_config.json"])
def test_byt5s_tokenizer_needs_no_file_and_reads_bytes(tmp_path, stated):
  for name in ("config.json", "tokenizer_config.json"):
    named = {"tokenizer_class": "ByT5Tokenizer"} if name == stated else {}
    (tmp_path / name).write_text(json.dumps({"model_type": "t5"} | named))
  tokenizer = Tokenizer(tmp_path)
  tokenizer.check_model("byt5", 384, 1, 0)
  texts = ["Gr\u00fc\u00dfe", "", "a </s> <pad> <extra_id_0>", "\u4e2d\U0001f600"]
  ids, mask = tokenizer.tokenize(texts, 32)
  for row, seen, text in zip(ids, mask, texts, strict=True):
    assert row[seen].tolist() == [byte + 3 for byte in text.encode()] + [1]
    assert (row[~seen] == 0).all()
  assert tokenizer.decode(ids) == texts
  for ours, targets in zip((ids, mask), tokenizer.targets(texts, 32), strict=True):
    np.testing.assert_array_equal(ours, targets)
  assert tokenizer.words("ab") == [100, 101]


def byte_level_tokenizer(folder: Path, **special: str) -> Path:
  """A byte-level BPE as GPT-2's and SmolLM2's, whose files frame no text."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  pieces = ["<|endoftext|>", "<|im_end|>", *alphabet, "\u0120d", "\u0120do"]
  bpe = models.BPE(
    {piece: i for i, piece in enumerate(pieces)}, [("\u0120", "d"), ("\u0120d", "o")]
  )
  backend = tokenizers.Tokenizer(bpe)
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
  backend.save(str(folder / "tokenizer.json"))
  (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
  file = folder / "tokenizer_config.json"
  file.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | special))
  return folder


def test_a_decoder_only_model_reads_texts_that_end_with_a_line_break(tmp_path):
  tokenizer = Tokenizer(byte_level_tokenizer(tmp_path, eos_token="<|im_end|>"), continued=True)
  names = {i: piece for piece, i in tokenizer.vocabulary.items()}
  texts = ["a dog", "", "a long text </s><|im_end|>"]
  (read, seen), (written, kept) = tokenizer.tokenize(texts, 6), tokenizer.targets(texts, 6)
  pieces = [[names[i] for i in row[shown]] for row, shown in zip(read, seen, strict=True)]
  assert pieces == [["a", "\u0120do", "g", "\u010a"], ["\u010a"], [*"a\u0120lon", "\u010a"]]
  np.testing.assert_array_equal(seen, kept)
  np.testing.assert_array_equal(written, np.where(read == read[1, 0], tokenizer.eos_id, read))
  assert (tokenizer.eos_id, tokenizer.pad_id) == (1, 1)
  assert (read[~seen] == 1).all() and tokenizer.decode(written) == ["a dog", "", "a lon"]
  assert [names[i] for i in tokenizer.words("a dog")] == ["a", "\u0120do", "g"]
  ids, mask = tokenizer.targets(["<|im_end|>"], 32)
  assert (ids[mask] == 1).sum() == 1 and tokenizer.decode(ids) == ["<|im_end|>"]


def test_a_decoder_only_models_tokenizer_needs_an_end_token(tmp_path):
  with pytest.raises(UserError, match=r"tokenizer_config.json names no eos_token"):
    Tokenizer(byte_level_tokenizer(tmp_path), continued=True)
  with pytest.raises(UserError, match=r"Asking to pad|ends texts with its end token"):
    Tokenizer(byte_level_tokenizer(tmp_path, eos_token="<|im_end|>"))
