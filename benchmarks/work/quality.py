"""Seconds to reach a CIDEr score on the shapes data: our whole program, and PyTorch training."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from afspl_jax.config.experiment import Eval, Experiment, Fed, Optim, Prompter, Uplink
from afspl_jax.config.files import CONFIGS, load_config
from afspl_jax.data.batches import Split
from afspl_jax.evaluation.generate import evenly_spread
from afspl_jax.evaluation.scores import TextWithReferences, score_predictions
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.models.huggingface.locate import locate
from afspl_jax.models.huggingface.preprocessing import ImageProcessor, Tokenizer
from afspl_jax.runs.prepare import Setup, find_inputs, prepare_setup
from benchmarks.bench import Bench
from benchmarks.case import Case, Rows
from benchmarks.compare import OURS, spread
from benchmarks.launched import launched
from benchmarks.process import Child
from benchmarks.sides.side import Leaves
from benchmarks.table import Line

_EVERY = 2  # rounds between two validations
_ROUNDS = 20

# The same method as P1: dense averaging, no local prompts, a constant learning rate.
_CONFIG = Experiment(
  prompter=Prompter(local=False, routing="none"),
  optim=Optim(
    local_steps=16, schedule="constant", warmup_rounds=0.0, prompt_lr=1e-1, weight_decay=0.0
  ),
  uplink=Uplink(select="dense"),
  fed=Fed(rounds=_ROUNDS),
  eval=Eval(every=_EVERY, val_examples=100, test_examples=8),
)


def time_to_cider(bench: Bench) -> Iterator[Line]:
  """Measures ours from the start of the command, with warm caches, and P1 from its first batch."""
  rounds = 4 if bench.quick else _ROUNDS
  with Child("benchmarks.work.quality:PlainFederation") as theirs:
    start, curve = 0.0, []
    for _ in range(rounds // _EVERY):
      done = theirs("rounds", _EVERY)
      start += done.seconds
      curve.append((start, done.value))
  ours = _our_curve(rounds)
  best = min(max(cider for _, cider in curve), max(cider for _, cider in ours))
  for share in (0.8, 1.0):
    ours_at, theirs_at = (_first(c, share * best) for c in (ours, curve))
    yield Line(
      f"ten sites, CIDEr {share * best:.2f}",
      spread([ours_at]),
      ratios={"P1": spread([theirs_at / ours_at])},
      note=f"after {rounds} rounds ours {ours[-1][1]:.2f}, P1 {curve[-1][1]:.2f}",
      details={OURS: ours, "P1": curve},
    )


def _first(curve: list[tuple[float, float]], wanted: float) -> float:
  return next(seconds for seconds, cider in curve if cider >= wanted)


def _our_curve(rounds: int) -> list[tuple[float, float]]:
  """Returns (seconds since the start, CIDEr) of the validations, with warm caches."""
  for stop in (_EVERY, rounds):
    curve = []
    with tempfile.TemporaryDirectory() as folder:
      flags = [f"--config.{name}={value}" for name, value in _flags(stop).items()]
      with contextlib.closing(launched(Path(folder) / "run", flags, os.environ)) as lines:
        for seconds, line in lines:
          if line["split"] == "val" and line["round"]:
            curve.append((seconds, line["cider"]))
            if line["round"] == stop:
              break
  return curve


def _flags(rounds: int) -> dict[str, Any]:
  """Returns the settings of `_CONFIG` that differ from those of launch.py without flags."""
  launched_config = load_config(CONFIGS / "shapes.py", "get_config", Experiment)
  flags: dict[str, Any] = {}
  for group in dataclasses.fields(Experiment):
    value, usual = getattr(_CONFIG, group.name), getattr(launched_config, group.name)
    if dataclasses.is_dataclass(value):
      for field in dataclasses.fields(value):
        if getattr(value, field.name) != getattr(usual, field.name):
          flags[f"{group.name}.{field.name}"] = getattr(value, field.name)
  return flags | {"fed.rounds": rounds}


@dataclass(frozen=True)
class ShapesCase(Case):
  """The images of the shapes data with the shipped models, for P1."""

  images: int = 0
  splits: tuple[str, ...] = ("train", "validation")

  @property
  def config(self) -> Experiment:
    """The config, with local prompts that no row may use."""
    return dataclasses.replace(_CONFIG, prompter=Prompter(routing="none"))

  def pixels(self) -> Float[np.ndarray, "images h x 3"]:
    """Returns the images of all splits, one split after the other."""
    sources = find_inputs(_CONFIG, self.splits).sources
    processor = ImageProcessor(locate("tiny", "clip"))
    images = [s.load_image(key) for s in sources.values() for key in s.images()]
    return processor(images)


class PlainFederation:
  """P1 in a plain federated loop: train each client, average, score."""

  def __init__(self) -> None:
    from benchmarks.sides.torch_plain import TorchPlain

    case = ShapesCase()
    with tempfile.TemporaryDirectory() as folder:
      config = case.config
      self._setup = prepare_setup(
        config, find_inputs(config, case.splits), ClientStore(Path(folder))
      )
    self._rng = np.random.default_rng(0)
    self._params: Leaves = self._setup.global_params(self._setup.shared)
    folders = {kind: locate("tiny", kind) for kind in ("clip", "t5")}
    self._tokenizer = Tokenizer(folders["t5"])
    self._side = TorchPlain(case, folders, self._params)
    self._rows = _ImageRows(self._setup, case.splits)

  def rounds(self, number: int) -> float:
    """Trains for some rounds; returns the validation CIDEr after the last."""
    optim = self._setup.config.optim
    train, clients = self._setup.splits["train"], self._setup.clients["train"]
    for _ in range(number):
      parts = [
        self._rows(train, "train", self._rng, indices, optim.local_steps, optim.batch_size)
        for indices in clients.values()
      ]
      rows = Rows(*(np.stack(leaves, axis=1) for leaves in zip(*parts, strict=True)))
      self._side.start_from(self._params)
      trained = self._side.train(rows).params
      sizes = np.array([len(indices) for indices in clients.values()], np.float64)
      share = (sizes / sizes.sum()).astype(np.float32)
      self._params = jax.tree.map(lambda x: np.tensordot(share, x, axes=1), trained)  # noqa: B023
    self._side.start_from(self._params)
    return self._cider()

  def _cider(self) -> float:
    validation = self._setup.splits["validation"]
    scored = evenly_spread(len(validation), _CONFIG.eval.val_examples)
    rows = self._rows(validation, "validation", None, np.array(scored), 1, len(scored))
    rows = Rows(*(x[:, None] for x in rows))
    ids = self._side.generate(rows, 1, _CONFIG.eval.max_tokens, until_end=True)
    texts = self._tokenizer.decode(ids)
    examples = [validation.examples[i] for i in scored]
    return score_predictions(
      TextWithReferences(text, list(example.references), example.question)
      for text, example in zip(texts, examples, strict=True)
    )["cider"]


class _ImageRows:
  """Makes batches with image indices in place of features."""

  def __init__(self, setup: Setup, splits: tuple[str, ...]):
    sources, start = find_inputs(_CONFIG, splits).sources, 0
    self._row: dict[tuple[str, str], int] = {}
    for name, source in sources.items():
      self._row |= {(name, key): start + i for i, key in enumerate(source.images())}
      start += len(source.images())

  def __call__(
    self,
    split: Split,
    name: str,
    rng: np.random.Generator | None,
    indices: np.ndarray,
    steps: int,
    size: int,
  ) -> Rows:
    wanted, reference = steps * size, None
    if rng is not None:
      passes = -(-wanted // len(indices))
      indices = np.concatenate([rng.permutation(indices) for _ in range(passes)])[:wanted]
      reference = rng.integers(2**31, size=wanted)
    batch = split.batch(indices, wanted, reference)
    image = np.array([self._row[name, split.examples[i].image] for i in indices])
    flat = Rows(
      image,
      batch.text,
      batch.instruction,
      batch.instruction_mask,
      batch.targets,
      batch.targets_mask,
      np.zeros(wanted, bool),
    )
    return Rows(*(np.asarray(x).reshape(steps, size, *x.shape[1:]) for x in flat))
