"""A selection of generated texts, from the best to the worst, with images if they are here."""

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
from afspl_jax.data.sources.shapes import shapes_exist
from afspl_jax.errors import UserError
from afspl_jax.evaluation.metrics.cider import cider
from afspl_jax.evaluation.metrics.ptb import tokenize
from afspl_jax.evaluation.metrics.vqa import score_answers
from afspl_jax.reporting.html.curves import TITLES, thin_out
from afspl_jax.reporting.html.files import RunFiles, file_stamp
from afspl_jax.storage.run_lines import read_lines
from afspl_jax.types import Source

_EACH = 4  # examples in a group
_SCORED = 2000  # texts from which the examples are selected
_REFERENCES = 2  # shown references of an example
_SIDE = 192  # pixels of the longer side of an image
_PERSONAL = "test_personal.jsonl"
_ABSENT = "The data are not on this machine: no images are shown."

Stamp = tuple[str, int, int]


class RankedText(NamedTuple):
  """A line of a predictions file with its score."""

  line: dict[str, Any]
  metric: str  # as the page names it
  score: float


@dataclass(frozen=True)
class GalleryItem:
  """A shown example."""

  id: str
  prediction: str
  personalised: str  # the text of the personalised model; "" if it is not known
  question: str
  references: Sequence[str]
  more: int  # number of references that are not shown
  score: str
  image: str = ""  # a data URL; "" if the image is not on this machine


@dataclass(frozen=True)
class Gallery:
  """Groups of examples, and a note on their source."""

  groups: Mapping[str, Sequence[GalleryItem]] = field(default_factory=dict)
  note: str = ""


def make_gallery(run: RunFiles, images: bool) -> Gallery:
  """Best, median and worst captions, and correct and wrong answers, of the newest predictions.

  Args:
    run: the run.
    images: whether images are shown.
  """
  found = run.predictions()
  stamp = file_stamp(found[1]) if found else None
  if not found or not stamp:
    return Gallery()
  split, file = found
  captions, answers, total = _scored(stamp)
  groups: dict[str, list[RankedText]] = {}
  if captions:
    middle = max(0, len(captions) // 2 - _EACH // 2)
    groups["Best captions"] = captions[:_EACH]
    if len(captions) >= 3 * _EACH:
      groups["Median captions"] = captions[middle : middle + _EACH]
    groups["Worst captions"] = captions[_EACH:][-_EACH:]
  if answers:
    correct = [item for item in answers if item.score > 0.5]
    groups["Correct answers"] = thin_out(correct, _EACH)
    groups["Wrong answers"] = thin_out([item for item in answers if item.score <= 0.5], _EACH)
  personalised = _texts(file.parent / _PERSONAL) if split == "test" else {}
  pictures, missing = _pictures(run, split) if images else (None, "Images are switched off.")
  shown = {
    name: [_item(item, personalised, pictures) for item in items]
    for name, items in groups.items()
    if items
  }
  note = f"Texts of the global model on the {split} split ({file.name}), ordered by their score."
  note += f" Selected from {len(captions) + len(answers)} of {total} texts. {missing}"
  return Gallery(shown, note)


@functools.lru_cache(maxsize=8)
def _scored(stamp: Stamp) -> tuple[list[RankedText], list[RankedText], int]:
  """Captions from best to worst, answers in file order, and the total number of texts."""
  lines = read_lines(Path(stamp[0]))
  shown = thin_out(lines, _SCORED)
  captions = [line for line in shown if not line.get("question")]
  answers = [line for line in shown if line.get("question")]
  ordered: list[RankedText] = []
  if captions:
    predictions = [tokenize(line["prediction"]) for line in captions]
    references = [[tokenize(text) for text in line["references"]] for line in captions]
    items = cider(predictions, references).items
    ordered = [RankedText(line, "CIDEr", float(s)) for line, s in zip(captions, items, strict=True)]
    ordered.sort(key=lambda item: (-item.score, item.line["id"]))
  scored = score_answers(
    [line["prediction"] for line in answers], [line["references"] for line in answers]
  )
  by_row = {
    row: RankedText(answers[row], TITLES[name], float(score))
    for name, (rows, found) in scored.items()
    for row, score in zip(rows, found.items, strict=True)
  }
  return ordered, [by_row[row] for row in sorted(by_row)], len(lines)


def _texts(file: Path) -> dict[str, str]:
  return {line["id"]: line["prediction"] for line in read_lines(file)}


def _item(
  scored: RankedText, personalised: Mapping[str, str], pictures: "_Pictures | None"
) -> GalleryItem:
  line = scored.line
  question, references = line.get("question", ""), line["references"]
  return GalleryItem(
    id=line["id"],
    prediction=line["prediction"],
    personalised=personalised.get(line["id"], ""),
    question=question,
    references=references[:_REFERENCES],
    more=max(0, len(references) - _REFERENCES),
    score=f"{scored.metric} {scored.score:.2f}",
    image=pictures.url(line["id"]) if pictures else "",
  )


class _Pictures:
  """Thumbnails of a source's examples; each is read once."""

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
      except (UserError, OSError):  # a damaged image is left out; the text is still shown
        self._urls[id] = ""
    return self._urls[id]


def _pictures(run: RunFiles, split: str) -> tuple[_Pictures | None, str]:
  """A split's images, or the reason why there are none."""
  known = {field.name for field in dataclasses.fields(Data)}
  data = {name: value for name, value in run.config.get("data", {}).items() if name in known}
  fingerprint = run.facts.get("data", {}).get(split, "")
  return _opened(json.dumps(data), split, fingerprint)


@functools.lru_cache(maxsize=8)
def _opened(data: str, split: str, fingerprint: str) -> tuple[_Pictures | None, str]:
  settings = Data(**json.loads(data))
  try:
    # Opening it would generate it, and a report only reads.
    if settings.source == "shapes" and not shapes_exist(settings.dir):
      return None, _ABSENT
    source = open_source(settings, split)
    if source.fingerprint != fingerprint:
      return None, "The data on this machine differ from the data of the run: no images are shown."
    return _Pictures(source), ""
  except (UserError, OSError):
    return None, _ABSENT


def _data_url(image: Image.Image) -> str:
  small = image.convert("RGB")
  small.thumbnail((_SIDE, _SIDE))
  out = io.BytesIO()
  small.save(out, "JPEG", quality=80)
  return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
