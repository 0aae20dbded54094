"""EfficientNet-Lite against a plain PyTorch forward pass and against golden outputs."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from afspl_jax.errors import UserError
from afspl_jax.models.efficientnet_lite.architecture import key_table
from afspl_jax.models.efficientnet_lite.config import EfficientNetLiteConfig
from afspl_jax.models.efficientnet_lite.efficientnet_lite import EfficientNetLite
from afspl_jax.models.huggingface.weights import (
  load_image_processor,
  load_vision_encoder,
  outline,
  save_backbone,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
SMALL = EfficientNetLiteConfig(width_coefficient=0.5, depth_coefficient=0.5)
BLOCKS = 10  # of SMALL: 1, 1, 1, 2, 2, 2 and 1
STRIDES = {1: 2, 2: 2, 3: 2, 7: 2}  # of these blocks, by number; the others have 1
# Parameters with the classifier, as the TensorFlow repository publishes them, in millions.
PUBLISHED = {"1.0 1.0": 4.7, "1.0 1.1": 5.4, "1.1 1.2": 6.1, "1.2 1.4": 8.2, "1.4 1.8": 13.0}


@nnx.jit
def encode(model, pixels):
  return model.encode_image(pixels)


def same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
  """A convolution with TensorFlow's "same" padding."""
  kernel, side = weight.shape[-1], x.shape[-1]
  total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
  x = F.pad(x, (total // 2, total - total // 2) * 2)
  return F.conv2d(x, weight, stride=stride, groups=groups)


def reference(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
  """A network of the size SMALL, by the names of its tensors alone."""

  def normed(x, name):
    mean, variance, weight, bias = (
      tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

  x = F.relu6(normed(same(x, tensors["_conv_stem.weight"], 2), "_bn0"))
  for i in range(BLOCKS):
    name, start = f"_blocks.{i}.", x
    if f"{name}_expand_conv.weight" in tensors:
      x = F.relu6(normed(same(x, tensors[f"{name}_expand_conv.weight"], 1), f"{name}_bn0"))
    kernel = tensors[f"{name}_depthwise_conv.weight"]
    x = F.relu6(normed(same(x, kernel, STRIDES.get(i, 1), len(kernel)), f"{name}_bn1"))
    x = normed(same(x, tensors[f"{name}_project_conv.weight"], 1), f"{name}_bn2")
    if start.shape == x.shape:
      x = x + start
  head = F.relu6(normed(same(x, tensors["_conv_head.weight"], 1), "_bn1"))
  return x.flatten(2).transpose(1, 2), head.mean(dim=(2, 3))


def random_tensors(config: EfficientNetLiteConfig) -> dict[str, np.ndarray]:
  """Random weights of the release's names, with which no layer fades or explodes."""
  rng = np.random.default_rng(0)
  leaves = dict(nnx.to_flat_state(nnx.state(outline(EfficientNetLite, config))))
  tensors = {}
  for key, (path, layout) in key_table(config).leaves.items():
    shape = layout.torch_shape(leaves[path].shape)
    if len(shape) == 4:
      tensors[key] = rng.normal(size=shape, scale=(2 / np.prod(shape[1:])) ** 0.5)
    elif key.endswith(("running_var", ".weight")):
      tensors[key] = rng.uniform(0.5, 1.5, shape)
    else:
      tensors[key] = rng.normal(size=shape, scale=0.2)
  return {key: tensor.astype(np.float32) for key, tensor in tensors.items()}


@pytest.mark.parametrize("side", [64, 50])  # even grids, and odd ones, whose padding differs
def test_a_random_network_equals_pytorch(tmp_path, relative_error, side):
  config = dataclasses.replace(SMALL, image_size=side)
  tensors = random_tensors(config)
  unused = {"_fc.bias": np.zeros(9, np.float32), "_bn0.num_batches_tracked": np.array(7)}
  save_file(tensors | unused, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
  model = load_vision_encoder(tmp_path)
  pixels = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
  tokens, pooled = encode(model, pixels)
  sizes = model.sizes
  assert tokens.shape == (2, sizes.patches, sizes.token_width) and sizes.text_length == 0
  with torch.no_grad():
    expected = reference(
      {key: torch.from_numpy(tensor) for key, tensor in tensors.items()},
      torch.from_numpy(pixels.transpose(0, 3, 1, 2)),
    )
  assert relative_error(tokens, expected[0]) < 1e-5
  assert relative_error(pooled, expected[1]) < 1e-5


def test_golden_outputs_of_the_pretrained_network(tmp_path, relative_error):
  folder = DATA / "efficientnet_lite0"
  if not folder.is_dir():
    pytest.skip(f"{folder} is absent: the pretrained network lies beside the checkout")
  (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
  (tmp_path / "config.json").write_text('{"model_type": "efficientnet_lite"}')
  model, processor = load_vision_encoder(tmp_path), load_image_processor(tmp_path)
  golden = np.load(folder / "golden.npz")
  images = DATA / "flickr8k_ml" / "images"
  pixels = processor([Image.open(images / name) for name in golden["names"]])
  tokens, pooled = encode(model, pixels)
  grid = golden["grid"].transpose(0, 2, 3, 1).reshape(4, 49, 320)
  assert relative_error(tokens[:4], grid) < 1e-5
  assert relative_error(pooled, golden["pooled"]) < 1e-5
  head = jax.nn.relu6(model.head(tokens[:2].reshape(2, 7, 7, 320)))
  assert relative_error(head, golden["head"].transpose(0, 2, 3, 1)) < 1e-5


def test_it_comes_back_as_it_was_saved(tmp_path):
  config = EfficientNetLiteConfig(1.1, 1.2, 32)
  graph, state = nnx.split(outline(EfficientNetLite, config))
  saved = nnx.merge(graph, jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), state))
  save_backbone(saved, tmp_path)
  back = load_vision_encoder(tmp_path)
  assert back.config == config
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(back), nnx.state(saved))
  )


@pytest.mark.parametrize("coefficients", PUBLISHED)
def test_the_sizes_of_the_family_are_the_published_ones(coefficients):
  config = EfficientNetLiteConfig(*map(float, coefficients.split()))
  leaves = nnx.to_flat_state(nnx.state(outline(EfficientNetLite, config)))
  statistics = ("mean", "variance")  # are no parameters in TensorFlow's count
  count = sum(int(np.prod(leaf.shape)) for path, leaf in leaves if path[-1] not in statistics)
  assert (count + 1281 * 1000) / 1e6 == pytest.approx(PUBLISHED[coefficients], abs=0.05)
  table = key_table(config)
  assert {leaf.path for leaf in table.leaves.values()} == {path for path, _ in leaves}


def test_without_a_file_of_settings_images_have_the_size_of_the_config(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "efficientnet_lite", "image_size": 240}')
  processor = load_image_processor(tmp_path)
  assert processor.size == (240, 240)
  pixels = processor([Image.new("RGB", (300, 500), (0, 127, 255))])
  np.testing.assert_array_equal(pixels[0, 7, 9], np.float32([-127 / 128, 0, 1]))
  (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImage"}')
  with pytest.raises(UserError, match="must be a EfficientNetLite one; got 'CLIPImage'"):
    load_image_processor(tmp_path)


def test_an_impossible_coefficient_is_named():
  with pytest.raises(UserError, match=r'"width_coefficient" must be above 0 .*; got 0.0'):
    EfficientNetLiteConfig.from_hf({"width_coefficient": 0})
