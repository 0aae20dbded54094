import sys

import numpy as np
import pytest
from PIL import Image

from afspl_jax.runs.study.plots import separate_labels, write_plot
from afspl_jax.runs.study.results import read_results
from tests.runs.study.test_tables import STUDY, put


def test_labels_stay_if_they_fit():
  assert separate_labels([0.1, 0.4, 0.9], 0.2) == pytest.approx([0.1, 0.4, 0.9])


def test_overlapping_labels_spread_around_their_mean():
  assert separate_labels([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
  # The moved pair now overlaps its neighbour, which moves too.
  assert separate_labels([0.3, 0.5, 0.5], 0.2) == pytest.approx([0.7 / 3, 1.3 / 3, 1.9 / 3])


def test_labels_neither_overlap_nor_leave_the_panel():
  for seed in range(20):
    places = sorted(np.random.default_rng(seed).uniform(size=20))
    found = separate_labels(places, 0.05)
    assert np.diff(found).min() > 0.05 - 1e-9
    assert found[0] >= 0 and found[-1] <= 1 + 1e-9


def test_a_plot_has_a_panel_for_every_setting_with_results(tmp_path):
  path, sizes = tmp_path / "bytes.png", []
  for setting in STUDY.settings:
    for seed in (0, 1):
      put(tmp_path, setting, "full AFSPL", seed, test={"cider": 1.0 + seed, "bytes_up": 10_000})
    assert write_plot(STUDY, read_results(STUDY, tmp_path), path)
    with Image.open(path) as image:
      sizes.append(image.size)
  assert sizes == [(920, 350), (920, 350)]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["bytes.png", "runs"]


def test_without_results_there_is_no_plot(tmp_path):
  assert not write_plot(STUDY, read_results(STUDY, tmp_path), tmp_path / "bytes.png")
  assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_there_is_no_plot_and_no_error(tmp_path, monkeypatch):
  put(tmp_path, "iid", "full AFSPL", 0, test={"cider": 1.0, "bytes_up": 10})
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert not write_plot(STUDY, read_results(STUDY, tmp_path), tmp_path / "bytes.png")
