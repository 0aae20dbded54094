"""Random tiny reference models in PyTorch, saved as transformers saves them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from afspl_jax.models.huggingface.weights import save_backbone
from afspl_jax.models.t5 import t5
from tests.models.saved import T5S, random_model

SHARED = Path(__file__).parents[3] / "shared" / "data" / "hf"


@pytest.fixture(scope="package", autouse=True)
def exact_and_quickly_compiled():
  """Full float32 products on any device; models of this size compile longer than they run."""
  fast = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  with jax.default_matmul_precision("highest"):
    yield
  jax.config.update("jax_disable_most_optimizations", fast)


@pytest.fixture(scope="session")
def hf_data() -> Path:
  if not SHARED.is_dir():
    pytest.skip(f"{SHARED} is absent: the real tokenizers and configs lie beside the checkout")
  return SHARED


@pytest.fixture(scope="session")
def randomize():
  """Gives every parameter of a torch model values that a wrong norm or bias would change."""

  def apply(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
      for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and name.endswith("norm.weight"):
          parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim < 2:
          parameter.add_(0.2 * noise)
        elif "embed" in name or "shared" in name or "bias" in name:
          parameter.copy_(0.5 * noise)
        else:
          parameter.copy_(noise * parameter.shape[1] ** -0.5)
    return model.eval()

  return apply


@pytest.fixture(scope="session")
def relative_error():
  """Largest difference over largest value, of ours against the reference."""

  def measure(ours, reference) -> float:
    ours = np.asarray(ours, np.float64)
    reference = np.asarray(
      reference.detach().numpy() if isinstance(reference, torch.Tensor) else reference, np.float64
    )
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())

  return measure


@pytest.fixture(scope="module")
def source() -> t5.T5:
  return random_model(t5.T5, T5S["v1.1"])


@pytest.fixture
def folder(source, tmp_path):
  """A checkpoint of one file."""
  save_backbone(source, tmp_path / "t5")
  return tmp_path / "t5"


@pytest.fixture
def shards(folder):
  """The same checkpoint in three shards."""
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
  places = {key: names[i % 3] for i, key in enumerate(sorted(tensors))}
  for name in names:
    save_file({key: tensors[key] for key in places if places[key] == name}, folder / name)
  index = {"metadata": {}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder
