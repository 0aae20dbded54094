"""VQA-RAD: clinicians' questions about radiology images of three organs (Lau et al. 2018)."""

import os
from collections.abc import Sequence

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.image_files import FileSource, ImageFolder, base, by_split, missing
from afspl_jax.data.records import Agreed, Distinct, fields, members, read_json, split_of, text
from afspl_jax.types import Example

FILE, IMAGES = "trainset.json", "images"
_SITES = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
_HOW = f"""\
Fetch the public data set VQA-RAD (Lau et al. 2018) from OSF and put it there: its JSON file as
  {FILE}, its image folder as {IMAGES}/"""


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, FileSource]:
  """Opens splits: 70, 10 and 20 % of the images by their names' hash.

  The data set's own test part asks about images of its training part, and so is not used.
  Questions and answers are lower-cased, as the data set writes "Yes" and "yes", and freed of tabs.

  Args:
    splits: their names.
    data: `dir` holds trainset.json and images/.
    faults: what may be left out.

  Raises:
    MissingData: they are not there.
    UserError: the file is of another form, or more records are malformed than allowed.
  """
  folder = base(data.dir)
  path, root = folder / FILE, folder / IMAGES
  if not os.path.isfile(path) or not os.path.isdir(root):
    fault = f"no {FILE} beside a folder {IMAGES} of VQA-RAD in {folder.absolute()}"
    raise missing(fault, _HOW)
  images, ids, organs = ImageFolder(root), Distinct("qid"), Agreed("image_organ")
  found = []
  for where, record in members(read_json(path), "", path):
    with faults.skipping():
      record = fields(record, where)
      number = text(record, "qid", where, number=True)
      image = images.find(text(record, "image_name", where), where, "image_name")
      organ = text(record, "image_organ", where)
      question = text(record, "question", where)
      answer = text(record, "answer", where, number=True)
      if organ not in _SITES:
        raise Malformed(
          where,
          "image_organ",
          f'"image_organ" must be one of {", ".join(_SITES)}; got {organ!r:.60}. Correct it.',
        )
      organs.add(image, organ, where)
      ids.add(number, where)
      example = Example(
        id=number,
        image=image,
        references=(_plain(answer),),
        question=_plain(question),
        site=_SITES[organ],
        labels=(organ,),
      )
      found.append((split_of(image), example))
  return by_split(splits, found, images)


def _plain(value: str) -> str:
  return " ".join(value.lower().split())
