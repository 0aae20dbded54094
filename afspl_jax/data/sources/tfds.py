"""Any data set of tensorflow-datasets with images and texts: `data.fields` maps roles to features.

`data.source="tfds:NAME"` and `data.fields="image=image,captions=caption/text"`; a "/" goes inside a
feature. Roles are image, captions, question, answers, labels, site and id.
"""

import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.records import UniqueValues, number_text, text_field, text_list
from afspl_jax.data.splits import SPLITS, named_split, split_portions, splits_served
from afspl_jax.data.tfds_reader import Builder, TfdsSource, open_prepared, tfds_folder
from afspl_jax.errors import SettingError
from afspl_jax.types import Example

ROLES = ("image", "captions", "question", "answers", "labels", "site", "id")
_HOW = """\
  Prepare it there as array_record, where TensorFlow may be installed:
  tfds build {} --file_format=array_record --data_dir={}
  If it is elsewhere, add --config.data.dir=FOLDER"""


class _Feature(NamedTuple):
  path: tuple[str, ...]
  names: Sequence[str]  # of the classes, if its values are classes


def open_splits(
  splits: Sequence[str], data: Data, bad_records: BadRecords
) -> dict[str, TfdsSource]:
  """Opens splits; a missing split is a slice of another one (`splits_served`).

  Args:
    splits: names of the splits.
    data: `source`, `fields`, and `dir`, the folder of tensorflow-datasets.
    bad_records: collects the records that are left out.

  Raises:
    MissingData: the data set has not been prepared.
    SettingError: `fields` has a wrong format, or the data set has no such features or splits.
  """
  name = data.source.partition(":")[2]
  roles = _roles(data.fields)
  builder = open_prepared(name, data.dir, _HOW.format(name, tfds_folder(data.dir)))
  features = {role: _feature(builder, role, path) for role, path in roles.items()}
  image = features.pop("image").path[0]
  known = [split for split in builder.info.splits if named_split(split)]
  own = {named_split(split): split for split in known}
  if not 0 < len(own) == len(known):
    raise SettingError(
      f"data.source={data.source}: expected each of the splits {', '.join(SPLITS)} at most once,"
      f" and at least one of them; got {', '.join(builder.info.splits)}. Use another data set."
    )
  out = {}
  for part, among in splits_served(own).items():
    for split, (start, end) in split_portions(among).items():
      if split in splits:
        # Data sets are shuffled when they are written.
        cut = f"[{start:.0%}:{end:.0%}]" if len(among) > 1 else ""
        adapt = _Reader(features, bad_records).read
        reading = (builder, f"{own[part]}{cut}", adapt, bad_records, image, data.fields)
        out[split] = TfdsSource(*reading)
  return {split: out[split] for split in splits if split in out}


def _roles(fields: str) -> dict[str, str]:
  form = "a list such as image=image,captions=caption/text"
  roles: dict[str, str] = {}
  for part in fields.split(",") if fields else ():
    role, equals, path = (piece.strip() for piece in part.partition("="))
    if not equals or not path or role not in ROLES or role in roles:
      raise SettingError(
        f"data.fields: expected {form}, with each of {', '.join(ROLES)} at most once; got"
        f" {part.strip()!r:.60} in {fields!r:.200}"
      )
    roles[role] = path
  asks = {"question", "answers"} & set(roles)
  if "image" not in roles or len(asks) == 1 or not (asks or "captions" in roles):
    raise SettingError(
      f"data.fields: expected {form}, with image, and captions or question and answers, or all;"
      f" got {fields!r:.200}"
    )
  return roles


def _feature(builder: Builder, role: str, path: str) -> _Feature:
  features = builder.info.features
  found = _walk(features, path)
  if found is None:
    raise SettingError(
      f"data.fields: expected for {role} a feature of {builder.info.full_name}; got {path!r}. It"
      f" has {', '.join(sorted(_paths(features)))}"
    )
  keys, leaf = found
  is_image = type(leaf).__name__ == "Image"
  if is_image != (role == "image") or (is_image and len(keys) > 1):
    wanted = "an image, not within another feature" if role == "image" else "no image"
    raise SettingError(
      f"data.fields: expected for {role} {wanted}; got {path!r}, which is {type(leaf).__name__}"
    )
  while hasattr(leaf, "feature"):
    leaf = leaf.feature
  return _Feature(keys, tuple(getattr(leaf, "names", None) or ()))


def _walk(feature: Any, path: str) -> tuple[tuple[str, ...], Any] | None:
  """The keys that lead to a feature, and the feature; a key may itself contain "/"."""
  feature = getattr(feature, "feature", feature)  # of a sequence: the feature of its entries
  for key in feature if hasattr(feature, "keys") else ():
    if path == key:
      return (key,), feature[key]
    if path.startswith(f"{key}/") and (found := _walk(feature[key], path[len(key) + 1 :])):
      return (key, *found[0]), found[1]
  return None


def _paths(feature: Any) -> list[str]:
  feature = getattr(feature, "feature", feature)
  if not hasattr(feature, "keys"):
    return [""]
  return [f"{key}/{rest}".rstrip("/") for key in feature for rest in _paths(feature[key])]


class _Reader:
  """Makes examples from the records of one split."""

  def __init__(self, features: Mapping[str, _Feature], blanks: BadRecords):
    self._features, self._blanks = features, blanks
    self._ids = UniqueValues("id")

  def read(self, record: Mapping[str, Any], image: str, where: str) -> list[Example]:
    """Makes the examples of a record.

    Raises:
      BadRecord: a value is missing or wrong, or an earlier record has the same id.
    """
    found = {role: self._value(record, role) for role in self._features}
    name = image
    if "id" in found:
      name = text_field(found, "id", where)
      self._ids.add(name, where)
    labels = Counter(label for label in _several(found.get("labels", [])) if label)
    common: dict[str, Any] = {
      "image": image,
      "site": text_field(found, "site", where) if "site" in found else "",
      "labels": tuple(label for label, _ in labels.most_common()),
    }
    out = []
    if "captions" in found:
      found["captions"] = _several(found["captions"])
      out.append(Example(id=name, references=text_list(found, "captions", where), **common))
    if "question" in found:
      several = isinstance(found["question"], list)
      questions = _several(found["question"])
      answers = found["answers"] if several else [found["answers"]]
      if not isinstance(answers, list) or len(answers) != len(questions):
        raise BadRecord(
          where,
          "answers",
          f'"answers" must be one for each "question"; got {answers!r:.60}. Correct data.fields.',
        )
      for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        pair = {"question": question, "answers": _several(answer)}
        out.append(
          Example(
            id=f"{name}-q{i}" if several or out else name,
            references=text_list(pair, "answers", where, self._blanks),
            question=text_field(pair, "question", where),
            **common,
          )
        )
    return out

  def _value(self, record: Mapping[str, Any], role: str) -> Any:
    keys, names = self._features[role]
    value: Any = record
    for key in keys:
      value = value[key]
    return _worded(value, names)


def _worded(value: Any, names: Sequence[str]) -> Any:
  """Texts for numbers: the names of classes, and "" for -1, which means no class, and for NaN."""
  if isinstance(value, list):
    return [_worded(part, names) for part in value]
  if isinstance(value, str):
    return value
  if names:
    return names[int(value)] if int(value) >= 0 else ""
  return number_text(value) if isinstance(value, numbers.Real) else str(value)


def _several(value: Any) -> list[Any]:
  return value if isinstance(value, list) else [value]
