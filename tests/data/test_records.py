"""How images without a split get one, and faults that several readers share."""

import math
from collections import Counter

import numpy as np
import pytest

from afspl_jax.data.bad_records import BadRecord, BadRecords
from afspl_jax.data.records import id_field, text_field, text_list
from afspl_jax.data.splits import (
  SPLITS,
  hashed_split,
  named_split,
  split_portions,
  splits_served,
)


@pytest.mark.parametrize(
  "among, shares",
  [(SPLITS, (0.7, 0.1, 0.2)), (SPLITS[1:], (1 / 3, 2 / 3)), (SPLITS[:2], (7 / 8, 1 / 8))],
)
def test_splits_have_fixed_proportions(among, shares):
  found = Counter(hashed_split(f"{i}.jpg", among) for i in range(3000))
  assert [found[split] / 3000 for split in among] == pytest.approx(list(shares), abs=0.03)
  assert [end - start for start, end in split_portions(among).values()] == pytest.approx(
    list(shares)
  )


@pytest.mark.parametrize(
  "available, expected",
  [
    (("train",), {"train": SPLITS}),
    (("test",), {"test": SPLITS}),
    (("train", "validation"), {"train": ("train",), "validation": ("validation", "test")}),
    (("train", "test"), {"train": ("train", "validation"), "test": ("test",)}),
    (SPLITS, {split: (split,) for split in SPLITS}),
  ],
)
def test_parts_serve_missing_splits(available, expected):
  assert splits_served(available) == expected


@pytest.mark.parametrize(
  "split, names",
  [
    ("train", ["train", "Train", "TRAIN", "training", " train "]),
    ("validation", ["validation", "val", "Val", "valid", "dev", "Dev", "development"]),
    ("test", ["test", "Test", "testing"]),
    ("", ["", "restval", "trainval", "evaluation", "all", "1"]),
  ],
)
def test_a_split_has_several_names(split, names):
  assert [named_split(name) for name in names] == [split] * len(names)


@pytest.mark.parametrize(
  "value, text, number",
  [
    (139, "139", "139"),
    (139.0, "139", "139"),
    ("000000000139", "000000000139", "139"),
    ("0", "0", "0"),
    ("000", "000", "0"),
    (-0.0, "0", "0"),
    (2.5, "2.5", "2.5"),
    (np.float32(0.1), "0.1", "0.1"),
    (9**400, str(9**400), str(9**400)),
    (1e22, "10000000000000000000000", "10000000000000000000000"),
    (" CXR01_IM ", "CXR01_IM", "CXR01_IM"),
    ("٠٠٧", "٠٠٧", "٠٠٧"),
  ],
)
def test_whole_floats_and_padded_digits_are_ids(value, text, number):
  assert text_field({"id": value}, "id", "f:1", number=True) == text
  assert id_field({"id": value}, "id", "f:1") == number


@pytest.mark.parametrize("value", [math.nan, math.inf, True, None, "", "\u200b", "\0", [1]])
def test_other_values_are_no_ids(value):
  with pytest.raises(BadRecord, match='f:1: "id" must be text or a number'):
    id_field({"id": value}, "id", "f:1")


def test_blank_texts_among_others_are_skipped_and_counted(capsys):
  found = BadRecords()
  record = {"answers": ["yes", " ", "\u200b", None, "no"], "blank": ["", None], "number": ["a", 5]}
  assert text_list(record, "answers", "f:1", found) == ("yes", "no")
  assert found.blank_texts == ["f:1"] * 3 and not found.found
  found.report()
  assert capsys.readouterr().out == "left out 3 blank answers, the first of f:1\n"
  found.report()
  assert capsys.readouterr().out == ""
  for key in ("blank", "number"):
    with pytest.raises(BadRecord, match=f'"{key}" must be a list of at least one text'):
      text_list(record, key, "f:2", found)
  with pytest.raises(BadRecord, match="none of them blank"):
    text_list(record, "answers", "f:3")
