"""Tokenizers of the tiny CLIP and T5, in Hugging Face format: one token per word.

The words are listed: from so small a corpus, a trainer would learn single letters.
"""

import functools
import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizerFast, T5TokenizerFast

from afspl_jax.data.shapes import language
from afspl_jax.data.shapes.scene import sample_scene

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!()'-"


@functools.cache
def words() -> tuple[str, ...]:
  """Returns every word and punctuation mark of the shapes language, most frequent first."""
  rng = np.random.default_rng(0)
  counts: dict[str, int] = {}
  texts = [*language.CAPTION_INSTRUCTIONS, "list all objects .", "fill in the blank ."]
  for _ in range(4000):
    scene, style = sample_scene(rng), language.sample_style(rng)
    texts.append(language.caption(scene, style, rng))
    for question in language.questions(scene, style, rng):
      texts += [question.text, question.answer]
  for text in texts:
    for word in text.split():
      counts[word] = counts.get(word, 0) + 1
  return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def save_t5_tokenizer(folder: Path) -> None:
  """Writes a Unigram tokenizer: pad 0, end 1, unknown 2, then words, then single characters."""
  pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
  known = words()
  pieces += [(f"▁{word}", -5.0 - 0.01 * i) for i, word in enumerate(known)]
  pieces.append(("▁", -12.0))
  pieces += [(c, -20.0) for c in _CHARACTERS]
  backend = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.decoder = decoders.Metaspace()
  backend.post_processor = processors.TemplateProcessing(
    single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
  )
  T5TokenizerFast(tokenizer_object=backend, extra_ids=0).save_pretrained(folder)


def save_clip_tokenizer(folder: Path, more: tuple[str, ...] = ()) -> None:
  """Writes a byte-level BPE tokenizer like CLIP's, in which every word is one token.

  Args:
    folder: for the files; created if missing.
    more: words beyond those of the shapes language.
  """
  letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
  backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  trainer = trainers.BpeTrainer(
    vocab_size=1000,
    initial_alphabet=letters,
    end_of_word_suffix="</w>",
    show_progress=False,
  )
  # Each word has a different count, so that few merges are tied.
  known = [*words(), *(word for word in more if word not in words())]
  backend.train_from_iterator([" ".join([w] * (2 + i)) for i, w in enumerate(known)], trainer)
  trained = json.loads(backend.to_str())["model"]
  vocab = {token: i for i, token in enumerate(letters + [f"{c}</w>" for c in letters])}
  for token in sorted(trained["vocab"], key=trained["vocab"].get):
    vocab.setdefault(token, len(vocab))
  for special in ("<|startoftext|>", "<|endoftext|>"):
    vocab[special] = len(vocab)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
  lines = ["#version: 0.2"] + [" ".join(pair) for pair in trained["merges"]]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")
  end = AddedToken("<|endoftext|>", normalized=True, special=True)
  tokenizer = CLIPTokenizerFast(
    vocab=str(folder / "vocab.json"),
    merges=str(folder / "merges.txt"),
    unk_token=end,
    eos_token=end,
    pad_token=end,
  )
  tokenizer.save_pretrained(folder)
