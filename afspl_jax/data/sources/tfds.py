"""Any data set of tensorflow-datasets with images and texts: `data.fields` says which are which.

`data.source="tfds:NAME"` and `data.fields="image=image,captions=caption/text"`: roles and features,
whose parts are joined with "/". Roles are image, captions, question, answers, labels, site and id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import Faults, Malformed
from afspl_jax.data.records import Distinct, portions, served, text, texts
from afspl_jax.data.tfds_reader import Builder, TfdsSource, data_dir, prepared
from afspl_jax.errors import SettingError
from afspl_jax.types import Example

ROLES = ("image", "captions", "question", "answers", "labels", "site", "id")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_HOW = """\
  Prepare it there as array_record, where TensorFlow may be installed:
  tfds build {} --file_format=array_record --data_dir={}
  Lies it elsewhere, add --config.data.dir=FOLDER"""


class _Feature(NamedTuple):
  path: tuple[str, ...]
  names: Sequence[str]  # of its numbers, where it is of classes


def open_splits(splits: Sequence[str], data: Data, faults: Faults) -> dict[str, TfdsSource]:
  """Opens splits; those that the data set lacks are slices of others, as `served` says.

  Args:
    splits: their names.
    data: `source`, `fields`, and in `dir` where tensorflow-datasets' data sets lie.
    faults: what may be left out.

  Raises:
    MissingData: it has not been prepared.
    SettingError: `fields` is not of its form, or the data set has no such features or splits.
  """
  name = data.source.partition(":")[2]
  roles = _roles(data.fields)
  builder = prepared(name, data.dir, _HOW.format(name, data_dir(data.dir)))
  features = {role: _feature(builder, role, path) for role, path in roles.items()}
  image = features.pop("image").path[0]
  own = {_SPLITS[split]: split for split in reversed(builder.info.splits) if split in _SPLITS}
  if not own:
    raise SettingError(
      f"data.source={data.source}: expected one of the splits {', '.join(_SPLITS)}; got"
      f" {', '.join(builder.info.splits)}. Use another data set."
    )
  out = {}
  for part, among in served(own).items():
    for split, (start, end) in portions(among).items():
      if split in splits:
        # Data sets are shuffled when they are written.
        cut = f"[{start:.0%}:{end:.0%}]" if len(among) > 1 else ""
        adapt = _Reader(features).read
        reading = (builder, f"{own[part]}{cut}", adapt, faults, image, data.fields)
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
  """The keys that lead to a feature and the feature; names may themselves have a "/"."""
  feature = getattr(feature, "feature", feature)  # of a sequence: its entries'
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
  """Makes examples of the records of one split."""

  def __init__(self, features: Mapping[str, _Feature]):
    self._features = features
    self._ids = Distinct("id")

  def read(self, record: Mapping[str, Any], image: str, where: str) -> list[Example]:
    """The examples of a record.

    Raises:
      Malformed: it lacks what it should have, or an earlier one has its id.
    """
    found = {role: self._value(record, role) for role in self._features}
    name = image
    if "id" in found:
      name = text(found, "id", where)
      self._ids.add(name, where)
    labels = Counter(label for label in _several(found.get("labels", [])) if label)
    common: dict[str, Any] = {
      "image": image,
      "site": text(found, "site", where) if "site" in found else "",
      "labels": tuple(label for label, _ in labels.most_common()),
    }
    out = []
    if "captions" in found:
      found["captions"] = _several(found["captions"])
      out.append(Example(id=name, references=texts(found, "captions", where), **common))
    if "question" in found:
      several = isinstance(found["question"], list)
      questions = _several(found["question"])
      answers = found["answers"] if several else [found["answers"]]
      if not isinstance(answers, list) or len(answers) != len(questions):
        raise Malformed(
          where,
          "answers",
          f'"answers" must be one for each "question"; got {answers!r:.60}. Correct data.fields.',
        )
      for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        said = {"question": question, "answers": _several(answer)}
        out.append(
          Example(
            id=f"{name}-q{i}" if several or out else name,
            references=texts(said, "answers", where),
            question=text(said, "question", where),
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
  """Texts for numbers: those of classes by their names, and none for -1, which is no class."""
  if isinstance(value, list):
    return [_worded(part, names) for part in value]
  if isinstance(value, str):
    return value
  return (names[int(value)] if int(value) >= 0 else "") if names else str(value)


def _several(value: Any) -> list[Any]:
  return value if isinstance(value, list) else [value]
