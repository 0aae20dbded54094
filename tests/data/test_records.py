"""How images without a split get one, and faults that several readers share."""

from collections import Counter

import pytest

from afspl_jax.data.records import SPLITS, hashed_split, split_portions, splits_served


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
