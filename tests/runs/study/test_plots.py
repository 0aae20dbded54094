import sys

import numpy as np
import pytest
from PIL import Image

from afspl_jax.runs.study import plots, tables
from tests.runs.study.test_tables import STUDY, put


def test_labels_stay_where_there_is_room():
  assert plots.spread([0.1, 0.4, 0.9], 0.2) == pytest.approx([0.1, 0.4, 0.9])


def test_labels_that_overlap_share_out_around_their_mean():
  assert plots.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
  # The moved pair now overlaps its neighbour, which moves too.
  assert plots.spread([0.3, 0.5, 0.5], 0.2) == pytest.approx([0.7 / 3, 1.3 / 3, 1.9 / 3])


def test_labels_neither_overlap_nor_leave_the_panel():
  for seed in range(20):
    places = sorted(np.random.default_rng(seed).uniform(size=20))
    found = plots.spread(places, 0.05)
    assert np.diff(found).min() > 0.05 - 1e-9
    assert found[0] >= 0 and found[-1] <= 1 + 1e-9


def test_a_picture_has_a_panel_for_every_setting_with_results(tmp_path):
  path, sizes = tmp_path / "bytes.png", []
  for setting in STUDY.settings:
    for seed in (0, 1):
      put(tmp_path, setting, "full AFSPL", seed, test={"cider": 1.0 + seed, "bytes_up": 10_000})
    assert plots.write(STUDY, tables.read(STUDY, tmp_path), path)
    sizes.append(Image.open(path).size)
  assert sizes == [(920, 350), (920, 350)]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bytes.png", "runs"]


def test_nothing_measured_gives_no_picture(tmp_path):
  assert not plots.write(STUDY, tables.read(STUDY, tmp_path), tmp_path / "bytes.png")
  assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_there_is_no_picture_and_no_error(tmp_path, monkeypatch):
  put(tmp_path, "iid", "full AFSPL", 0, test={"cider": 1.0, "bytes_up": 10})
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert not plots.write(STUDY, tables.read(STUDY, tmp_path), tmp_path / "bytes.png")
