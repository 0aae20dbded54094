"""Texts that a run generated, from the best to the worst, with their images where these are."""

import base64
import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from afspl_jax.config.experiment import Data
from afspl_jax.data.sources import open_source
from afspl_jax.data.sources.shapes import is_drawn
from afspl_jax.errors import UserError
from afspl_jax.evaluation.metrics.cider import cider
from afspl_jax.evaluation.metrics.ptb import tokenize
from afspl_jax.evaluation.metrics.vqa import vqa_accuracy
from afspl_jax.reporting.html.curves import thinned
from afspl_jax.reporting.html.files import Run, file_stamp
from afspl_jax.storage.run_lines import read_lines
from afspl_jax.types import Source

_EACH = 4  # examples of a group
_SCORED = 2000  # texts that the examples are taken from
_REFERENCES = 2  # of an example that are shown
_SIDE = 192  # pixels of an image's longer side
_PERSONAL = "test_personal.jsonl"
_ABSENT = "The data are not on this machine: no images are shown."

Stamp = tuple[str, int, int]


class Scored(NamedTuple):
  """A line of a file of predictions with its score."""

  line: dict[str, Any]
  score: float


@dataclass(frozen=True)
class Item:
  """An example as it is shown."""

  id: str
  prediction: str
  own: str  # what the prompter with the client's own prompt says; "" if that is not known
  question: str
  references: Sequence[str]
  more: int  # references that are not shown
  score: str
  image: str = ""  # a data URL; "" if the image is not on this machine


@dataclass(frozen=True)
class Gallery:
  """Groups of examples, and where they and their images are from."""

  groups: Mapping[str, Sequence[Item]] = field(default_factory=dict)
  note: str = ""


def gallery(run: Run, images: bool) -> Gallery:
  """The best, median and worst captions, and right and wrong answers, of the newest predictions.

  Args:
    run: whose.
    images: whether images are looked for.
  """
  found = run.predictions()
  stamp = file_stamp(found[1]) if found else None
  if not found or not stamp:
    return Gallery()
  split, file = found
  captions, answers, total = _scored(stamp)
  groups: dict[str, list[Scored]] = {}
  if captions:
    middle = max(0, len(captions) // 2 - _EACH // 2)
    groups["Best captions"] = captions[:_EACH]
    if len(captions) >= 3 * _EACH:
      groups["Median captions"] = captions[middle : middle + _EACH]
    groups["Worst captions"] = captions[_EACH:][-_EACH:]
  if answers:
    right = [item for item in answers if item.score > 0.5]
    groups["Right answers"] = thinned(right, _EACH)
    groups["Wrong answers"] = thinned([item for item in answers if item.score <= 0.5], _EACH)
  own = _own(file.parent / _PERSONAL) if split == "test" else {}
  pictures, missing = _pictures(run, split) if images else (None, "Images were not asked for.")
  shown = {
    name: [_item(item, own, pictures) for item in items] for name, items in groups.items() if items
  }
  note = f"By the global prompter, {len(captions) + len(answers)} of {total} texts on the {split}"
  note += f" split ({file.name}), ordered by their CIDEr or their accuracy. {missing}"
  return Gallery(shown, note)


@functools.lru_cache(maxsize=8)
def _scored(stamp: Stamp) -> tuple[list[Scored], list[Scored], int]:
  """Captions from the best to the worst, answers in their order, and how many texts there are."""
  lines = read_lines(Path(stamp[0]))
  shown = thinned(lines, _SCORED)
  captions = [line for line in shown if not line.get("question")]
  answers = [line for line in shown if line.get("question")]
  ordered: list[Scored] = []
  if captions:
    said = [tokenize(line["prediction"]) for line in captions]
    references = [[tokenize(text) for text in line["references"]] for line in captions]
    items = cider(said, references).items
    ordered = [Scored(line, float(s)) for line, s in zip(captions, items, strict=True)]
    ordered.sort(key=lambda item: (-item.score, item.line["id"]))
  answered: list[Scored] = []
  if answers:
    texts = [line["prediction"] for line in answers]
    rights = vqa_accuracy(texts, [line["references"] for line in answers]).items
    answered = [Scored(line, float(s)) for line, s in zip(answers, rights, strict=True)]
  return ordered, answered, len(lines)


def _own(file: Path) -> dict[str, str]:
  return {line["id"]: line["prediction"] for line in read_lines(file)}


def _item(scored: Scored, own: Mapping[str, str], pictures: "_Pictures | None") -> Item:
  line = scored.line
  question, references = line.get("question", ""), line["references"]
  return Item(
    id=line["id"],
    prediction=line["prediction"],
    own=own.get(line["id"], ""),
    question=question,
    references=references[:_REFERENCES],
    more=max(0, len(references) - _REFERENCES),
    score=f"{'accuracy' if question else 'CIDEr'} {scored.score:.2f}",
    image=pictures.url(line["id"]) if pictures else "",
  )


class _Pictures:
  """Small images of a source's examples, each read once."""

  def __init__(self, source: Source):
    self._source = source
    examples = (source[i] for i in range(len(source)))
    self._image = {example.id: example.image for example in examples}
    self._urls: dict[str, str] = {}

  def url(self, id: str) -> str:
    """A data URL of an example's image; "" if it cannot be read."""
    if id not in self._image:
      return ""
    if id not in self._urls:
      try:
        self._urls[id] = _data_url(self._source.load_image(self._image[id]))
      except (UserError, OSError):  # one that is damaged is left out; its text is there
        self._urls[id] = ""
    return self._urls[id]


def _pictures(run: Run, split: str) -> tuple[_Pictures | None, str]:
  """A split's images, or why there are none."""
  known = {field.name for field in dataclasses.fields(Data)}
  data = {name: value for name, value in run.config.get("data", {}).items() if name in known}
  print_ = run.facts.get("data", {}).get(split, "")
  return _opened(json.dumps(data), split, print_)


@functools.lru_cache(maxsize=8)
def _opened(data: str, split: str, print_: str) -> tuple[_Pictures | None, str]:
  settings = Data(**json.loads(data))
  try:
    # Opening it would draw it, and a report only reads.
    if settings.source == "shapes" and not is_drawn(settings.dir):
      return None, _ABSENT
    source = open_source(settings, split)
    if source.fingerprint != print_:
      return None, "The data on this machine are not the run's: no images are shown."
    return _Pictures(source), ""
  except (UserError, OSError):
    return None, _ABSENT


def _data_url(image: Image.Image) -> str:
  small = image.convert("RGB")
  small.thumbnail((_SIDE, _SIDE))
  out = io.BytesIO()
  small.save(out, "JPEG", quality=80)
  return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
