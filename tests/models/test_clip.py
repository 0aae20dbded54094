import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from afspl_jax.models.clip.clip import Clip
from afspl_jax.models.clip.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from afspl_jax.models.huggingface.weights import load_vision_encoder, outline

TOLERANCE = 1e-5

# name: vision fields, text fields, projection_dim
VARIANTS = {
  "quick_gelu, highest id is the end": (
    {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    {"hidden_size": 24, "num_attention_heads": 2, "eos_token_id": 2},
    16,
  ),
  "gelu, a rest of pixels, first end token": (
    {
      "hidden_size": 24,
      "num_attention_heads": 3,
      "image_size": 50,
      "patch_size": 16,
      "hidden_act": "gelu",
    },
    {
      "hidden_size": 32,
      "num_attention_heads": 4,
      "hidden_act": "gelu",
      "eos_token_id": 98,
      "pad_token_id": 98,
    },
    20,
  ),
  "mixed activations, other epsilon, uneven depth": (
    {
      "hidden_size": 20,
      "num_attention_heads": 5,
      "image_size": 28,
      "patch_size": 7,
      "layer_norm_eps": 1e-3,
      "num_hidden_layers": 3,
    },
    {"hidden_size": 20, "num_attention_heads": 1, "hidden_act": "gelu_new", "eos_token_id": 97},
    32,
  ),
}
TINY = ClipConfig(
  ClipVisionConfig(
    width=32, layers=2, heads=4, mlp_width=64, image_size=32, patch_size=8, activation="gelu"
  ),
  ClipTextConfig(
    width=24, layers=2, heads=2, mlp_width=40, vocab_size=99, max_length=12, eos_id=98
  ),
  joint_width=16,
)


def hf_config(vision: dict, text: dict, joint: int) -> transformers.CLIPConfig:
  return transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=joint)


@nnx.jit
def encode(clip, pixels, keep=None):
  return clip.encode_image(pixels, keep)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory, randomize):
  """A random CLIPModel and ours, loaded from its checkpoint."""
  vision, text, joint = VARIANTS[request.param]
  small = {"num_hidden_layers": 2, "intermediate_size": 40}
  config = hf_config(
    small | vision, small | {"vocab_size": 99, "max_position_embeddings": 12} | text, joint
  )
  reference = randomize(transformers.CLIPModel(config), seed=1)
  folder = tmp_path_factory.mktemp("clip")
  reference.save_pretrained(folder)
  return reference, load_vision_encoder(folder)


@pytest.fixture(scope="module")
def texts(pair):
  """Texts of several lengths with one end token each, padded with the end or with zeros."""
  eos = pair[0].config.text_config.eos_token_id
  eos = 98 if eos == 2 else eos
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 97, (4, 10))
  mask = np.ones((4, 10), np.int64)
  for row, length in enumerate((10, 7, 3, 2)):
    ids[row, length - 1 :] = eos if row % 2 else 0
    ids[row, length - 1] = eos
    mask[row, length:] = 0
  return ids, mask


def images(config, seed: int = 0) -> jax.Array:
  size = config.image_size
  return jax.random.normal(jax.random.key(seed), (3, size, size, 3))


def nchw(pixels: jax.Array) -> torch.Tensor:
  return torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2)))


def test_image_tokens_and_features_equal_transformers(pair, relative_error):
  reference, clip = pair
  pixels = images(clip.config.vision)
  tokens, joint = encode(clip, pixels)
  with torch.no_grad():
    expected = reference.get_image_features(nchw(pixels))
  assert relative_error(tokens, expected.last_hidden_state) < TOLERANCE
  assert relative_error(joint, expected.pooler_output) < TOLERANCE


@pytest.mark.parametrize("padded", [True, False])
def test_text_features_equal_transformers(pair, texts, relative_error, padded):
  reference, clip = pair
  ids, mask = texts if padded else (texts[0][:1], texts[1][:1])
  with torch.no_grad():
    expected = reference.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask))
  for form in (mask, mask.astype(bool)):
    joint = nnx.jit(lambda clip, i, m: clip.encode_text(i, m))(
      clip, ids.astype(np.int32), jnp.asarray(form)
    )
    assert relative_error(joint, expected.pooler_output) < TOLERANCE


def test_gradient_of_image_features_equals_transformers(pair, relative_error):
  reference, clip = pair
  pixels = images(clip.config.vision)
  weights = np.random.default_rng(1).normal(size=(3, clip.config.joint_width)).astype(np.float32)
  graph, state = nnx.split(clip)

  @jax.jit
  def gradient(pixels):
    return jax.grad(lambda x: jnp.sum(nnx.merge(graph, state).encode_image(x)[1] * weights))(pixels)

  inputs = nchw(pixels).requires_grad_()
  features = reference.get_image_features(inputs).pooler_output
  (features * torch.from_numpy(weights)).sum().backward()
  assert relative_error(gradient(pixels), inputs.grad.permute(0, 2, 3, 1)) < TOLERANCE


def test_logit_scale_is_loaded(pair):
  reference, clip = pair
  assert float(clip.logit_scale[...]) == reference.logit_scale.item()


@pytest.fixture(scope="module")
def tiny() -> Clip:
  return nnx.jit(lambda: Clip(TINY, rngs=nnx.Rngs(0)))()


def test_keeping_every_patch_changes_nothing(tiny, relative_error):
  pixels = images(TINY.vision)
  every = jnp.tile(jnp.arange(16), (3, 1))
  for ours, whole in zip(encode(tiny, pixels, every), encode(tiny, pixels), strict=True):
    assert relative_error(ours, whole) < 1e-6


def test_kept_patches_keep_their_position_and_dropped_ones_have_no_effect(tiny, relative_error):
  pixels = images(TINY.vision)
  keep = jnp.array([[0, 5, 6], [1, 2, 15], [3, 4, 8]])
  tokens, joint = encode(tiny, pixels, keep)
  assert tokens.shape == (3, 4, 32)
  # Patch 9 is row 2, column 1 of 4 by 4; no row keeps it.
  other = pixels.at[:, 16:24, 8:16].set(7.0)
  assert relative_error(encode(tiny, other, keep)[1], joint) == 0
  backward = encode(tiny, pixels, keep[:, ::-1])
  assert relative_error(backward[1], joint) < 1e-6
  assert relative_error(backward[0][:, 1:][:, ::-1], tokens[:, 1:]) < 1e-6


def test_every_parameter_has_a_gradient_of_the_contrastive_loss(tiny):
  graph, params = nnx.split(tiny)
  rng = np.random.default_rng(0)
  ids = jnp.asarray(rng.integers(1, 97, (3, 12))).at[:, -1].set(98)

  @jax.jit
  def gradients(params):
    def loss(params):
      clip = nnx.merge(graph, params)
      image = clip.encode_image(images(TINY.vision), keep=jnp.tile(jnp.arange(8), (3, 1)))[1]
      text = clip.encode_text(ids, jnp.ones_like(ids))
      image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
      logits = jnp.exp(clip.logit_scale[...]) * image @ text.T
      return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))

    return jax.grad(loss)(params)

  for path, gradient in nnx.to_flat_state(gradients(params)):
    # A bias of the keys shifts all scores of a query alike, so that softmax never sees it.
    if path[-2:] != ("key", "bias"):
      assert 0 < np.abs(gradient[...]).max() < 1e3, path


def test_initial_weights_follow_openai_clip(tiny):
  layer = tiny.vision.layers[0]
  expected = {
    32**-0.5: [layer.query.kernel, layer.key.kernel, layer.value.kernel],
    32**-0.5 / 2: [layer.out.kernel, layer.mlp_out.kernel],
    64**-0.5: [layer.mlp_in.kernel],
    24**-0.5: [tiny.text_projection.kernel],
    0.02: [tiny.text.token_embedding],
    0.01: [tiny.text.position_embedding],
  }
  for std, leaves in expected.items():
    for leaf in leaves:
      error = 4 / (2 * leaf.size) ** 0.5
      assert np.std(leaf[...]) == pytest.approx(std, rel=error)
  assert float(tiny.logit_scale[...]) == pytest.approx(np.log(1 / 0.07), rel=1e-4)


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(tiny, relative_error):
  half = outline(Clip, TINY, dtype=jnp.bfloat16)
  graph, state = nnx.split(half)
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
  pixels = images(TINY.vision)
  ours = encode(nnx.merge(graph, nnx.state(tiny)), pixels)
  expected = encode(tiny, pixels)
  assert ours[0].dtype == ours[1].dtype == jnp.bfloat16
  assert relative_error(ours[1].astype(jnp.float32), expected[1]) < 0.05


def test_wrong_sizes_are_rejected(tiny):
  with pytest.raises(ValueError, match=r"expected images of 32 x 32 pixels; got 40 x 32"):
    tiny.encode_image(jnp.zeros((1, 40, 32, 3)))
  ids = jnp.zeros((1, 13), jnp.int32)
  with pytest.raises(ValueError, match=r"at most 12 tokens; got 13"):
    tiny.encode_text(ids, ids)
