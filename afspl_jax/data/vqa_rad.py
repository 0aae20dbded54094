"""VQA-RAD: clinicians' questions about radiology images of three organs (Lau et al. 2018)."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from afspl_jax.config import digest
from afspl_jax.data.tfds_source import MissingData
from afspl_jax.errors import UserError
from afspl_jax.types import Example

FILE, IMAGES = "trainset.json", "images"
_SITES = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
_TYPES = {
  "qid": (int, str),
  "image_name": (str,),
  "image_organ": (str,),
  "question": (str,),
  "answer": (str, int, float),
}
# What Pillow raises for a file that is not a whole image.
_UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_HOW = """\
  Fetch the public data set VQA-RAD (Lau et al. 2018) from OSF and put it there: its JSON file as
  {file}, its image folder as {images}/
  Lies it elsewhere, add --config.data.dir=FOLDER"""


class VqaRad:
  """Some images of the folder, with their questions.

  Args:
    examples: of these images.
    folder: holds the images.
  """

  def __init__(self, examples: Sequence[Example], folder: Path):
    self._examples = examples
    self._folder = folder
    self._images = list(dict.fromkeys(example.image for example in examples))
    files = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in self._images]
    self.fingerprint = digest([[asdict(example) for example in examples], files])

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def images(self) -> Sequence[str]:
    """Keys of the images: their files' names."""
    return self._images

  def load_image(self, key: str) -> Image.Image:
    """Decodes one image as RGB.

    Raises:
      UserError: its file is not an image, or not whole.
    """
    path = self._folder / key
    try:
      with Image.open(path) as image:
        return image.convert("RGB")
    except _UNDECODABLE as error:
      raise UserError(
        f"{path}: expected an image; got a file that cannot be decoded: {error}."
        " Fetch it again, or remove its records."
      ) from error


def open_split(split: str, folder: str) -> VqaRad:
  """Opens "train", "validation" or "test": 70, 10 and 20 % of the images by their names' hash.

  The data set's own test part asks about images of its training part, and so is not used.

  Args:
    split: its name.
    folder: holds trainset.json and images/; "" for the working directory.

  Raises:
    MissingData: they are not there.
    UserError: a record is malformed, or a split gets no image; names the file and, from 1, the
      record.
  """
  base = Path(folder).expanduser()
  path, images = base / FILE, base / IMAGES
  if not path.is_file() or not images.is_dir():
    fault = f"no {FILE} beside a folder {IMAGES} of VQA-RAD in {base.absolute()}"
    raise MissingData(f"data: {fault}.\n{_HOW.format(file=FILE, images=IMAGES)}")
  files = {entry.name for entry in images.iterdir() if entry.is_file()}
  examples = _parse(_records(path), path, files)
  chosen = [example for example in examples if _split_of(example.image) == split]
  if not chosen:
    raise UserError(
      f"{path}: expected images of every split; got none of {split}, which takes images by their"
      " names' hash. Use the whole data set."
    )
  return VqaRad(chosen, images)


def _split_of(image: str) -> str:
  share = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
  return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


def _records(path: Path) -> list[Any]:
  try:
    records = json.loads(path.read_text(encoding="utf-8-sig"))
  except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
    raise UserError(
      f"{path}: expected a JSON list of records; got what cannot be read: {error}. Fetch it again."
    ) from error
  if not isinstance(records, list):
    raise UserError(
      f"{path}: expected a JSON list of records; got {type(records).__name__}. Fetch it again."
    )
  return records


def _parse(records: Iterable[Any], path: Path, files: set[str]) -> list[Example]:
  examples: dict[str, Example] = {}
  organs: dict[str, str] = {}
  for number, record in enumerate(records, start=1):
    where = f"{path}: record {number}"
    values = _checked(record, where)
    image, organ = values["image_name"], values["image_organ"]
    if image not in files:
      raise UserError(
        f'{where}: "image_name" must be the name of a file in {path.parent / IMAGES}; got'
        f" {image!r:.60}. Put the image there, or remove the record."
      )
    if organ not in _SITES:
      raise UserError(
        f'{where}: "image_organ" must be one of {", ".join(_SITES)}; got {organ!r}. Correct it.'
      )
    if organs.setdefault(image, organ) != organ:
      raise UserError(
        f'{where}: "image_organ" must be that of earlier records of {image}, {organs[image]}; got'
        f" {organ}. Correct one of them."
      )
    if values["qid"] in examples:
      raise UserError(
        f'{where}: "qid" must be of this record alone; got {values["qid"]} again. Renumber it.'
      )
    examples[values["qid"]] = Example(
      id=values["qid"],
      image=image,
      references=(_text(values["answer"]),),
      question=_text(values["question"]),
      site=_SITES[organ],
      labels=(organ,),
    )
  return list(examples.values())


def _text(value: str) -> str:
  """Lower-cased, as the data set writes "Yes" and "yes", and freed of its tabs."""
  return " ".join(value.lower().split())


def _checked(record: Any, where: str) -> dict[str, str]:
  """The values of a record that are used, as texts."""
  if not isinstance(record, dict):
    raise UserError(f"{where}: expected a JSON object; got {record!r:.60}. Remove it.")
  values = {}
  for key, types in _TYPES.items():
    if key not in record:
      raise UserError(f'{where}: expected the key "{key}"; got {sorted(record)}. Add it.')
    value = record[key]
    if not isinstance(value, types) or isinstance(value, bool) or not str(value).strip():
      kinds = " or ".join("text" if kind is str else kind.__name__ for kind in types)
      raise UserError(
        f'{where}: "{key}" must be {kinds}, not blank; got {value!r:.60}. Correct it.'
      )
    values[key] = str(value).strip()
  return values
