"""VQA-RAD: clinicians' questions about radiology images of three organs (Lau et al. 2018)."""

import itertools
import os
from collections.abc import Sequence

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.image_files import (
  FileSource,
  ImageFolder,
  data_folder,
  missing_data,
  sources_by_split,
)
from afspl_jax.data.records import (
  ConsistentValues,
  UniqueValues,
  as_object,
  list_entries,
  read_json_file,
  text_field,
)
from afspl_jax.data.splits import hashed_split
from afspl_jax.types import Example

FILES, IMAGES = ("trainset.json", "testset.json"), "images"
_SITES = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
_HOW = f"""\
Download the public data set VQA-RAD (Lau et al. 2018) from OSF and put it there: its JSON files as
  {" and ".join(FILES)}, or one of them, its image folder as {IMAGES}/"""


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, FileSource]:
  """Opens splits: 70, 10 and 20 % of the images by the hash of their names.

  Both files together are split, because the questions of the data set's test part are about images
  of its training part. One of the files is enough. Questions and answers are lower-cased, because
  the data set has both "Yes" and "yes", and tabs are replaced by spaces.

  Args:
    splits: names of the splits.
    data: `dir` holds trainset.json, testset.json or both, and images/.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: they were not found.
    UserError: the file has another format, or too many records are bad.
  """
  folder = data_folder(data.dir)
  paths, root = [folder / name for name in FILES if (folder / name).is_file()], folder / IMAGES
  if not paths or not os.path.isdir(root):
    raise missing_data(
      f"no {' or '.join(FILES)}, and folder {IMAGES} of VQA-RAD in {folder.absolute()}", _HOW
    )
  images, ids, organs = ImageFolder(root), UniqueValues("qid"), ConsistentValues("image_organ")
  found = []
  entries = (list_entries(read_json_file(path), "", path) for path in paths)
  for where, record in itertools.chain.from_iterable(entries):
    with bad_records.skipping():
      record = as_object(record, where)
      number = text_field(record, "qid", where, number=True)
      image = images.find(text_field(record, "image_name", where), where, "image_name")
      organ = text_field(record, "image_organ", where)
      question = text_field(record, "question", where)
      answer = text_field(record, "answer", where, number=True)
      if organ not in _SITES:
        raise BadRecord(
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
      found.append((hashed_split(image), example))
  return sources_by_split(splits, found, images)


def _plain(value: str) -> str:
  return " ".join(value.lower().split())
