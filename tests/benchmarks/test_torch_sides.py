"""The PyTorch sides compute the same as afspl_jax, to the last digits."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from afspl_jax.config.experiment import Experiment
from benchmarks.case import Case, Rows, rows, write_backbones
from benchmarks.sides.afspl import Afspl, untrained
from benchmarks.sides.side import Leaves, Side, Trained
from benchmarks.sides.torch_best import TorchBest
from benchmarks.sides.torch_plain import TorchPlain
from benchmarks.sides.torch_prompter import Prompter

TORCH = (TorchPlain, TorchBest)
GENERATING = (TorchPlain, TorchBest, Afspl)  # the first is the reference

# Relative to the norm of a leaf's change in training. Adam's steps do not shrink with the gradient,
# so that rounding matters if a gradient is almost 0: it causes 2e-4 of a change. A learning rate
# that is wrong by a hundredth causes 1e-2.
CHANGE = 1e-3


@dataclass(frozen=True)
class Variant(Case):
  """A case with other settings, by field of the config."""

  settings: tuple[tuple[str, str, object], ...] = ()

  @property
  def config(self) -> Experiment:
    config = super().config
    for section, name, value in self.settings:
      part = dataclasses.replace(getattr(config, section), **{name: value})
      config = dataclasses.replace(config, **{section: part})
    return config


ONE_LENGTH = ("optim", "target_cuts", ())  # one program of ours to compile in place of three
VARIANTS = {
  "coco": (),
  "fixed": (
    ONE_LENGTH,
    ("prompter", "pool_mode", "fixed"),
    ("prompter", "patch_pool", 2),
    ("optim", "clip_norm", 0.3),
    ("optim", "balance", 0.5),
  ),
  "dense": (ONE_LENGTH, ("prompter", "pool_mode", "dense"), ("optim", "weight_decay", 0.1)),
  "adaptive": (
    ONE_LENGTH,
    ("prompter", "pool_mass", 0.5),
    ("prompter", "k_min", 2),
    ("prompter", "k_max", 6),
    ("optim", "clip_norm", 1e6),
  ),
}


@dataclass
class Bench:
  """A case with the inputs of its sides."""

  case: Case
  folders: dict[str, Path]
  rows: Rows

  @cached_property
  def params(self) -> Leaves:
    return untrained(self.case, self.folders)

  def side(self, kind: type[Side], **options: object) -> Side:
    side = kind(self.case, self.folders, self.params, **options)
    side.encode()
    return side

  @cached_property
  def expected(self) -> Trained:
    return self.side(Afspl).train(self.rows)

  def changes(self, trained: Trained) -> dict[str, np.ndarray]:
    """The change of each leaf in training, by client."""
    added = jax.tree.map(lambda new, old: new - old, trained.params, self.params)
    flat = jax.tree_util.tree_leaves_with_path(added)
    return {jax.tree_util.keystr(path): leaf.reshape(len(leaf), -1) for path, leaf in flat}

  def far(self, trained: Trained, expected: Trained) -> list[str]:
    """The leaves, by client, whose change differs from the expected one."""
    ours, theirs = self.changes(trained), self.changes(expected)
    assert ours.keys() == theirs.keys()
    out = []
    for name, want in theirs.items():
      size = np.linalg.norm(want, axis=1)
      assert (size > 0).all(), f"{name} was not trained"
      off = np.linalg.norm(ours[name] - want, axis=1) / size
      out += [f"{name} of {client}" for client in np.flatnonzero(~(off < CHANGE))]
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return write_backbones(Case("toy", "toy"), tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, folders):
  case = Variant("toy", "toy", settings=VARIANTS[request.param])
  return Bench(case, folders, rows(case, steps=3, clients=3, batch=8))


@pytest.fixture(scope="module")
def bench(folders):
  case = Case("toy", "toy")
  return Bench(case, folders, rows(case, steps=3, clients=3, batch=8))


@pytest.fixture(scope="module")
def padded(bench):
  """Rows with instructions of different lengths."""
  mask = bench.rows.instruction_mask & (np.arange(6) < 2 + np.arange(8)[:, None] % 5)
  return Bench(bench.case, bench.folders, bench.rows._replace(instruction_mask=mask))


def client_zero(rows: Rows) -> Rows:
  return Rows(*(x[:, :1] for x in rows))


@pytest.mark.parametrize("kind", TORCH)
def test_training_agrees_with_afspl(variant, kind):
  trained = variant.side(kind).train(variant.rows)
  assert trained.losses.shape == (3, 3)
  np.testing.assert_allclose(trained.losses, variant.expected.losses, rtol=1e-4)
  assert variant.far(trained, variant.expected) == []


def test_the_comparison_detects_other_clients_and_learning_rates(bench):
  expected = bench.expected
  assert np.ptp(expected.losses, axis=1).min() > 1e-3
  moved = jax.tree.map(lambda leaf: np.roll(leaf, 1, axis=0), expected.params)
  leaves = 3 * len(bench.changes(expected))
  assert len(bench.far(Trained(expected.losses, moved), expected)) == leaves
  more = jax.tree.map(lambda new, old: old + 1.01 * (new - old), expected.params, bench.params)
  assert len(bench.far(Trained(expected.losses, more), expected)) == leaves


@pytest.mark.parametrize("kind", TORCH)
def test_padded_instructions_agree_with_afspl(padded, bench, kind):
  trained = padded.side(kind).train(padded.rows)
  np.testing.assert_allclose(trained.losses, padded.expected.losses, rtol=1e-4)
  assert padded.far(trained, padded.expected) == []
  assert abs(trained.losses / bench.expected.losses - 1).max() > 1e-3


@pytest.mark.parametrize("chunk", [0, 7])
def test_the_size_of_chunks_does_not_change_the_result(bench, chunk):
  trained = bench.side(TorchBest, chunk=chunk).train(bench.rows)
  np.testing.assert_allclose(trained.losses, bench.expected.losses, rtol=1e-4)
  assert bench.far(trained, bench.expected) == []


def test_clients_do_not_affect_each_other(bench):
  side = bench.side(TorchBest)
  together, alone = side.train(bench.rows), side.train(client_zero(bench.rows))
  np.testing.assert_allclose(alone.losses, together.losses[:, :1], rtol=1e-5)
  first = Trained(together.losses[:, :1], jax.tree.map(lambda x: x[:1], together.params))
  assert bench.far(alone, first) == []


@pytest.mark.parametrize("kind", TORCH)
def test_every_call_trains_from_the_initial_params(bench, kind):
  side = bench.side(kind)
  first, second = side.train(bench.rows), side.train(bench.rows)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("kind", TORCH)
def test_frozen_weights_stay_bit_identical_and_get_no_gradient(bench, kind):
  side = bench.side(kind)
  before = {name: x.clone() for name, x in side.frozen().items()}
  side.train(bench.rows)
  side.generate(bench.rows, beams=2, tokens=3)
  after = side.frozen()
  assert before.keys() == after.keys()
  for name, x in after.items():
    assert torch.equal(x, before[name]), name
    assert not x.requires_grad and x.grad is None, name


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("world", ["bench", "padded"])
def test_sides_generate_the_same_tokens(world, beams, request):
  bench = request.getfixturevalue(world)
  expected, *others = (
    bench.side(kind).generate(bench.rows, beams, tokens=9) for kind in GENERATING
  )
  assert expected.shape == (8, 9)
  assert len(np.unique(expected, axis=0)) > 1
  for ids in others:
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("kind", TORCH)
def test_generating_first_does_not_change_training(bench, kind):
  side = bench.side(kind)
  ids = side.generate(bench.rows, 1, 3)
  trained = side.train(bench.rows)
  np.testing.assert_allclose(trained.losses, bench.expected.losses, rtol=1e-4)
  np.testing.assert_array_equal(side.generate(bench.rows, 1, 3), ids)


def test_beam_search_finds_other_texts_than_greedy_search(bench):
  side = bench.side(TorchBest)
  assert (side.generate(bench.rows, 1, 9) != side.generate(bench.rows, 4, 9)).any()


def test_the_prompter_returns_its_leaves(bench):
  prompter = Prompter(bench.case.config, torch.ones(3, 32), bench.params)
  jax.tree.map(np.testing.assert_array_equal, prompter.leaves(), bench.params)


def test_the_prompter_rejects_other_settings_and_leaves(bench):
  mlp = Variant("toy", "toy", settings=(("prompter", "mapper", "mlp"),)).config
  with pytest.raises(NotImplementedError, match=r"prompter\.mapper"):
    Prompter(mlp, torch.ones(3, 32), bench.params)
  more = dict(bench.params) | {"other": np.zeros(3, np.float32)}
  with pytest.raises(ValueError, match="other"):
    Prompter(bench.case.config, torch.ones(3, 32), more)


def test_in_bfloat16_all_sides_have_similar_losses(bench, folders):
  case, wide = Case("toy", "toy", dtype="bfloat16"), bench.expected.losses
  narrow = Bench(case, folders, rows(case, steps=3, clients=3, batch=8))
  for kind in (Afspl, *TORCH):
    found = narrow.side(kind).train(narrow.rows).losses
    # Logits have eight bits; transformers also rounds the losses of tokens and their mean to eight.
    np.testing.assert_allclose(found, wide, rtol=2.0**-6, err_msg=kind.__name__)
    assert (found != wide).all()
