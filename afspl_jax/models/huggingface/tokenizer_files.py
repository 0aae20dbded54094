"""Opens the tokenizer of a checkpoint folder, by the class that its files name."""

import json
from pathlib import Path
from typing import Any

from afspl_jax.errors import UserError
from afspl_jax.models.architectures import architectures
from afspl_jax.storage.json_text import parse_json

_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")  # reads tokenizer.json as it is


def tokenizer_class(folder: Path) -> Any:
  """The class of a folder's tokenizer, as transformers' AutoTokenizer would choose it.

  AutoTokenizer itself only for unknown models: it imports an installed PyTorch, which takes a
  second and a quarter of a gigabyte.

  Args:
    folder: the checkpoint.

  Raises:
    UserError: the class is that of another model, which would make other ids of the same files.
  """
  import transformers

  model = _object(folder / "config.json")
  stated = _object(folder / "tokenizer_config.json").get("tokenizer_class")
  kind, known = str(model.get("model_type")), architectures()
  own = known[kind].tokenizers if kind in known else ()
  name = str(stated or model.get("tokenizer_class") or next(iter(own), None)).removesuffix("Fast")
  as_it_is = kind in known and not own and (folder / "tokenizer.json").is_file()
  if name in _GENERIC or as_it_is:
    return transformers.PreTrainedTokenizerFast
  if own and name not in own:
    raise UserError(
      f'{folder}: "tokenizer_class" must be {", ".join(own)} or PreTrainedTokenizerFast, because'
      f" the model is a {kind}; got {name!r:.60}. Take the tokenizer files of the checkpoint."
    )
  ours = {each for architecture in known.values() for each in architecture.tokenizers}
  return getattr(transformers, name if name in ours else "AutoTokenizer")


def control_tokens(tokenizer: Any) -> dict[int, str]:
  """The tokens of a transformers tokenizer that control a model, such as the end token, by id."""
  return {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def encode_as_text(tokenizer: Any) -> None:
  """Makes a tokenizer encode the names of control tokens in a text as any other text.

  The pipeline of tokenizers then looks for no control tokens, but a unigram model has them among
  its pieces, with the highest score. sentencepiece never matches these pieces; here they are
  renamed, with a space, which no text has after the pipeline has replaced it. CLIP's end token also
  stands for unknown bytes; a vocabulary without some bytes then leaves them out instead.

  Args:
    tokenizer: of transformers; changed in place.
  """
  from tokenizers import models

  names = set(control_tokens(tokenizer).values())
  tokenizer.split_special_tokens = True
  backend = getattr(tokenizer, "backend_tokenizer", None)
  if backend is None:
    return
  if isinstance(backend.model, models.BPE) and backend.model.unk_token in names:
    backend.model.unk_token = None
  if not isinstance(backend.model, models.Unigram):
    return
  model = json.loads(backend.to_str())["model"]
  pieces = [(f" {piece}" if piece in names else piece, score) for piece, score in model["vocab"]]
  backend.model = models.Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))


def _object(file: Path) -> dict[str, Any]:
  """The JSON object in a file; empty if there is none, which the tokenizer will report."""
  try:
    found = parse_json(file.read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
