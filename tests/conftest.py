"""Small, real models and data for every test: random weights, real shapes, no download."""

import atexit
import gc
import os
import shutil
import tempfile

from tests.quick_compile import QUICK_COMPILE

# No test asks the hub; those of fetching start a server of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

# Before JAX is imported. The tests of data parallelism need several devices, and the numbers of all
# others must not depend on how many there are.
os.environ["XLA_FLAGS"] = " ".join(
  (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4", QUICK_COMPILE)
)

# Torch's threads wait for each other in a loop: a test of 0.2 s takes 4.6 s of two processors.
os.environ["OMP_NUM_THREADS"] = "1"

# Models of this size compile for longer than they run. What one test, worker or child has compiled,
# no other does: test_train_step and test_chunked_loss alone take 83 s instead of 93.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers have it from who starts them
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Processes that the tests start find the checkout, and begin as tests/startup/ says.
os.environ["PYTHONPATH"] = os.pathsep.join(
  (
    os.path.join(os.path.dirname(__file__), "startup"),
    os.path.dirname(os.path.dirname(__file__)),
    *filter(None, (os.environ.get("PYTHONPATH"),)),
  )
)

import fcntl
import functools
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afspl_jax.config import experiment as settings
from afspl_jax.models.captioner import Captioner, module_leaves
from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.clip.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from afspl_jax.models.huggingface import weights
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from afspl_jax.models.prompter.prompter import Prompter
from afspl_jax.models.t5.config import T5Config
from afspl_jax.models.t5.t5 import T5
from afspl_jax.training.mesh import make_mesh
from afspl_jax.types import Batch, Params
from tests.launcher import Launcher
from tests.order import (  # noqa: F401 - hooks of pytest
  pytest_collection_modifyitems,
  pytest_configure,
  pytest_xdist_make_scheduler,
)

# All that is imported stays: looking through it for garbage is a third of the time of importing it.
gc.disable()

# A shell starts what it puts into the background with Ctrl-C ignored, and so would be the programs
# that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared" / "data"

CLIP = ClipConfig(
  vision=ClipVisionConfig(width=12, layers=1, heads=2, mlp_width=16, image_size=32, patch_size=8),
  text=ClipTextConfig(width=8, layers=1, heads=2, mlp_width=16, vocab_size=40, eos_id=39),
  joint_width=6,
)
T5_CONFIG = T5Config(
  vocab_size=40,
  width=16,
  head_width=8,
  mlp_width=24,
  encoder_layers=2,
  decoder_layers=2,
  heads=2,
  activation="gelu_new",
  gated=True,
  tied_head=False,
  scaled_head=False,
)


def pytest_collection_finish():
  atexit.register(gc.freeze)
  gc.freeze()
  gc.enable()


@dataclass
class Model:
  """A captioner with its leaves."""

  captioner: Captioner
  params: Params
  frozen: Params

  @functools.cached_property
  def encode(self):
    """What the captioner reads, of params and a batch: one program, not one for each operation."""
    return jax.jit(lambda params, batch: self.captioner.encode(params, self.frozen, batch))

  @functools.cached_property
  def logits(self):
    """Of what it has read and the targets."""
    return jax.jit(lambda read, targets: self.captioner.logits(self.frozen, read, targets))


@functools.cache
def make_model(contrast: bool = False, sites: int = 0, **prompter) -> Model:
  t5 = T5(T5_CONFIG, rngs=nnx.Rngs(1))
  defaults = dict(tokens=4, pool=6, pool_mass=0.9, k_max=3, key_dim=5, fusion_hidden=7)
  config = settings.Prompter(**(defaults | prompter))
  no_words = jnp.zeros(0, jnp.int32)
  prompter_ = Prompter(
    config,
    CLIP.sizes,
    t5.embedding[...],
    no_words,
    contrast=contrast,
    sites=sites,
    rngs=nnx.Rngs(2),
  )
  return Model(Captioner(prompter_, t5), module_leaves(prompter_), module_leaves(t5))


def make_batch(seed: int, *leading: int) -> Batch:
  """Random features and tokens; `leading` is (rows,) or (steps, rows)."""
  rng = np.random.default_rng(seed)
  patches = 1 + CLIP.vision.num_patches
  lengths = rng.integers(1, 6, size=(*leading, 1))
  values = dict(
    tokens=rng.normal(size=(*leading, patches, CLIP.vision.width)).astype(np.float32),
    image=rng.normal(size=(*leading, CLIP.joint_width)).astype(np.float32),
    text=rng.normal(size=(*leading, CLIP.joint_width)).astype(np.float32),
    instruction=rng.integers(2, 40, size=(*leading, 5)).astype(np.int32),
    instruction_mask=np.arange(5) < lengths,
    targets=rng.integers(2, 40, size=(*leading, 7)).astype(np.int32),
    targets_mask=np.arange(7) < lengths + 1,
    personal=rng.random(leading) < 0.5,
    caption=rng.normal(size=(*leading, CLIP.joint_width)).astype(np.float32),
  )
  return Batch(**{name: jnp.asarray(value) for name, value in values.items()})


@dataclass(frozen=True)
class Checkpoints:
  """Folders as from Hugging Face."""

  clip: Path
  t5: Path


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
  """A folder that the first worker to need it fills, and that all read."""
  base = tmp_path_factory.getbasetemp()
  base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  folder = base / name
  with open(base / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not folder.exists():
      make(base / f"{name}.new")
      (base / f"{name}.new").rename(folder)
  return folder


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> Checkpoints:
  """A random CLIP and T5 for the shapes world's images and words, with all their files."""
  base = made_once(tmp_path_factory, "checkpoints", write_checkpoints)
  return Checkpoints(base / "clip", base / "t5")


def write_checkpoints(base: Path) -> None:
  # Not above: importing them draws on much that most tests do without.
  from pretrain import tokenizers
  from pretrain.clip import PROCESSOR

  folders = Checkpoints(base / "clip", base / "t5")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizers, "words", functools.cache(tokenizers.words))  # takes seconds
    tokenizers.save_clip_tokenizer(folders.clip)
    tokenizers.save_t5_tokenizer(folders.t5)
  (folders.clip / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
  words = Tokenizer(folders.clip)
  clip = ClipConfig(
    vision=ClipVisionConfig(16, 1, 2, 32, image_size=64, patch_size=16),
    text=ClipTextConfig(
      16,
      1,
      2,
      32,
      vocab_size=words.vocab_size,
      bos_id=int(words.tokenize(["a"], 3)[0][0, 0]),
      eos_id=words.eos_id,
      pad_id=words.eos_id,
    ),
    joint_width=16,
  )
  weights.save_backbone(Clip(clip, rngs=nnx.Rngs(0)), folders.clip)
  t5 = T5Config(
    vocab_size=Tokenizer(folders.t5).vocab_size,
    width=16,
    head_width=8,
    mlp_width=32,
    encoder_layers=1,
    decoder_layers=1,
    heads=2,
    activation="gelu_new",
    gated=True,
    tied_head=False,
    scaled_head=False,
  )
  weights.save_backbone(T5(t5, rngs=nnx.Rngs(1)), folders.t5)


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> Path:
  """The shapes world with a few images a site; give it as data.dir."""
  return made_once(tmp_path_factory, "data_sets", draw_shapes)


def draw_shapes(folder: Path, train: int = 8, validation: int = 2, test: int = 2) -> None:
  """Draws the shapes world with so many images a site."""
  from afspl_jax.data.bad_records import BadRecords
  from afspl_jax.data.shapes import builder
  from afspl_jax.data.sources import shapes

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(builder, "PER_SITE", {"train": train, "validation": validation, "test": test})
    shapes.open_splits(["train"], settings.Data(dir=str(folder)), BadRecords())


@pytest.fixture(scope="session")
def model() -> Model:
  return make_model()


@pytest.fixture(scope="session")
def one_device():
  return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def four_devices():
  return make_mesh(jax.devices()[:4])


@pytest.fixture(scope="session")
def launcher(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return Launcher(tmp_path_factory.mktemp("launch"), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def rich(tmp_path_factory, tiny_checkpoints, shapes_dir):
  """A finished run, on the machine and with the features that it was made with."""
  from tests.recorded_run import rich_run

  base = tmp_path_factory.getbasetemp()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(base / "features"))
    yield rich_run(base, tiny_checkpoints, shapes_dir)
