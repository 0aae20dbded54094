import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afspl_jax.config import experiment as settings
from afspl_jax.errors import UserError
from afspl_jax.models.contracts import VisionSizes
from afspl_jax.models.prompter.fusion import Fusion
from afspl_jax.models.prompter.local import LOCAL, join_local, split_local
from afspl_jax.models.prompter.mapper import VisualMapper
from afspl_jax.models.prompter.pool import PoolChoice, PromptPool, balance_loss
from afspl_jax.models.prompter.prompter import Prompter
from tests.conftest import CLIP, make_batch, make_model


def make_pool(mode="adaptive", mass=0.9, k_min=1, k_max=4, temperature=0.1):
  prompts = jax.random.normal(jax.random.key(0), (8, 3, 5))
  return PromptPool(
    prompts,
    feature_width=4,
    key_width=6,
    mode=mode,
    mass=mass,
    k_min=k_min,
    k_max=k_max,
    temperature=temperature,
    rngs=nnx.Rngs(0),
  )


FEATURES = jax.random.normal(jax.random.key(1), (32, 8))


def reference_weights(probabilities, mass, k_min, k_max):
  """The definition, sample by sample."""
  out = np.zeros_like(probabilities)
  for row, p in zip(out, probabilities, strict=True):
    order = np.argsort(-p, kind="stable")
    k = next(k for k in range(1, len(p) + 1) if p[order[:k]].sum() >= mass or k == len(p))
    chosen = order[: min(max(k, k_min), k_max)]
    row[chosen] = p[chosen] / p[chosen].sum()
  return out


@pytest.mark.parametrize(
  ("mass", "k_min", "k_max"), [(0.9, 1, 4), (0.5, 2, 8), (0.99, 1, 8), (0.1, 1, 1)]
)
def test_adaptive_choice_is_the_smallest_set_that_reaches_the_mass(mass, k_min, k_max):
  chosen = make_pool(mass=mass, k_min=k_min, k_max=k_max)(FEATURES)
  expected = reference_weights(np.asarray(chosen.probabilities), mass, k_min, k_max)
  np.testing.assert_allclose(chosen.weights, expected, atol=1e-6)
  assert ((np.asarray(chosen.weights) > 0) == (expected > 0)).all()


def test_adaptive_choice_differs_between_samples():
  weights = make_pool(mass=0.7, k_max=8)(FEATURES).weights
  assert len(np.unique((np.asarray(weights) > 0).sum(axis=1))) > 2


def test_fixed_takes_k_and_dense_takes_all():
  fixed, dense = make_pool("fixed")(FEATURES), make_pool("dense")(FEATURES)
  assert ((np.asarray(fixed.weights) > 0).sum(axis=1) == 4).all()
  np.testing.assert_allclose(dense.weights, dense.probabilities)
  np.testing.assert_allclose(fixed.weights.sum(axis=1), 1, rtol=1e-6)


def test_the_prompt_is_the_weighted_sum():
  pool = make_pool()
  chosen = pool(FEATURES)
  expected = np.tensordot(np.asarray(chosen.weights), np.asarray(pool.prompts[...]), 1)
  np.testing.assert_allclose(chosen.prompt, expected, atol=1e-6)


def test_one_compile_serves_every_k():
  pool = make_pool(mass=0.7, k_max=8)
  run = jax.jit(lambda features: pool(features).weights)
  seen = {int(k) for i in range(4) for k in (np.asarray(run(FEATURES * 2**i + i)) > 0).sum(axis=1)}
  assert len(seen) > 2
  assert run._cache_size() == 1


def test_balance_is_one_when_even_and_m_when_one_prompt_does_all():
  rows = jnp.ones(8)
  even = jnp.eye(8)
  assert float(balance_loss(PoolChoice(jnp.zeros((8, 1, 1)), even, even), rows)) == pytest.approx(1)
  alone = jnp.zeros((8, 8)).at[:, 3].set(1.0)
  worst = balance_loss(PoolChoice(jnp.zeros((8, 1, 1)), alone, alone), rows)
  assert float(worst) == pytest.approx(8)


@pytest.mark.parametrize(("k_min", "k_max"), [(0, 4), (5, 4), (1, 9)])
def test_impossible_bounds_of_k_are_rejected(k_min, k_max):
  with pytest.raises(ValueError, match="1 <= k_min <= k_max <= pool"):
    make_pool(k_min=k_min, k_max=k_max)


def make_fusion(strategy, weights=()):
  return Fusion(strategy, 3, weights=weights, feature_width=4, hidden=5, rngs=nnx.Rngs(0))


ALL = jnp.ones((32, 3), bool)


@pytest.mark.parametrize("strategy", ["static", "learned", "dynamic"])
def test_fusion_starts_uniform_and_sums_to_one(strategy):
  weights = make_fusion(strategy)(FEATURES, ALL)
  np.testing.assert_allclose(weights, np.full((32, 3), 1 / 3), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["static", "learned", "dynamic"])
def test_unavailable_sources_have_weight_zero_and_the_others_are_renormalised(strategy):
  fusion = make_fusion(strategy, (1.0, 2.0, 5.0) if strategy == "static" else ())
  if strategy == "dynamic":
    fusion.score.kernel.set_value(jax.random.normal(jax.random.key(3), (5, 3)))
  every = np.asarray(fusion(FEATURES, ALL))
  without = np.asarray(fusion(FEATURES, ALL.at[:16, 2].set(False)))
  np.testing.assert_array_equal(without[:16, 2], 0)
  np.testing.assert_allclose(
    without[:16, :2], every[:16, :2] / every[:16, :2].sum(1, keepdims=True), rtol=1e-6
  )
  np.testing.assert_array_equal(without[16:], every[16:])


def test_static_weights_are_as_given_and_are_not_trained():
  fusion = make_fusion("static", (2.0, 1.0, 1.0))
  np.testing.assert_allclose(fusion(FEATURES, ALL)[0], [0.5, 0.25, 0.25])
  assert jax.tree.leaves(nnx.state(fusion, nnx.Param)) == []


def test_only_dynamic_weights_differ_between_samples():
  fusion = make_fusion("dynamic")
  fusion.score.kernel.set_value(jax.random.normal(jax.random.key(3), (5, 3)))
  weights = np.asarray(fusion(FEATURES, ALL))
  np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
  assert weights.std(axis=0).min() > 1e-3


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0)])
def test_bad_static_weights_are_rejected(weights):
  with pytest.raises(ValueError, match="fusion_weights: expected 3 weights"):
    make_fusion("static", weights)


def make_mapper(kind, patch_pool=2, num_patches=16):
  return VisualMapper(
    kind,
    vision=VisionSizes(32, 1, num_patches, token_width=12, feature_width=6, text_length=77),
    patch_pool=patch_pool,
    width=10,
    hidden=7,
    rngs=nnx.Rngs(0),
  )


@pytest.mark.parametrize(("kind", "tokens"), [("linear", 4), ("mlp", 4), ("pooled:3", 3)])
def test_mapper_gives_its_number_of_tokens(kind, tokens):
  batch = make_batch(0, 5)
  mapper = make_mapper(kind)
  assert mapper.num_tokens == tokens
  assert mapper(batch.tokens, batch.image).shape == (5, tokens, 10)


def test_mapper_averages_neighbouring_patches():
  mapper = make_mapper("linear")
  tokens = jax.random.normal(jax.random.key(0), (1, 17, 12))
  image = jnp.zeros((1, 6))
  square = [0, 1, 4, 5]  # the upper left 2 x 2 of 4 x 4 patches, behind CLS
  there, back = (jnp.array([1 + i for i in order]) for order in (square, square[::-1]))
  shuffled = tokens.at[0, there].set(tokens[0, back])
  np.testing.assert_allclose(mapper(tokens, image), mapper(shuffled, image), atol=1e-5)
  moved = tokens.at[0, 1:].set(tokens[0, :0:-1])
  assert np.abs(np.asarray(mapper(tokens, image) - mapper(moved, image))).max() > 1e-2


@pytest.mark.parametrize(
  "kind", ["pooled:0", "pooled", "cubic", "linear:3", "adapter", "adapter:0"]
)
def test_unknown_mappers_are_rejected(kind):
  with pytest.raises(ValueError, match="linear, mlp, adapter:N or pooled:N"):
    make_mapper(kind)


def test_patches_that_cannot_be_pooled_are_rejected():
  with pytest.raises(ValueError, match="Set it to 1"):
    make_mapper("linear", patch_pool=2, num_patches=49)


def units(model) -> np.ndarray:
  """T5's words in the units of the prompts."""
  embedding = np.asarray(model.frozen["embedding"])
  return embedding / np.sqrt(np.mean(embedding**2))


def distance(prompts, words) -> np.ndarray:
  """Of every prompt token to the nearest word."""
  flat = np.asarray(prompts).reshape(-1, words.shape[1])
  return np.abs(flat[:, None] - words[None]).max(axis=-1).min(axis=1)


def test_prompts_start_as_rows_of_the_embedding():
  model = make_model()
  for prompts in (
    model.params["pool"]["prompts"],
    model.params["visual_prompt"],
    model.params["textual_prompt"],
    model.params["local"]["prompt"],
  ):
    assert distance(prompts, units(model)).max() < 1e-5


def test_prompts_start_at_random_with_the_scale_of_words():
  model = make_model(init="random", pool=32, tokens=16)
  prompts = np.asarray(model.params["pool"]["prompts"])
  assert distance(prompts, units(model)).min() > 0.1
  assert prompts.std() == pytest.approx(units(model).std(), rel=0.05)


def prompter(init: str, init_ids, **other) -> Prompter:
  config = settings.Prompter(init=init, tokens=4, pool=6, k_max=3, **other)
  embedding = jax.random.normal(jax.random.key(0), (20, 16))
  return Prompter(config, CLIP.sizes, embedding, jnp.asarray(init_ids, jnp.int32), rngs=nnx.Rngs(0))


def test_prompts_start_only_from_the_given_words():
  made = prompter("text", [3, 7])
  embedding = np.asarray(jax.random.normal(jax.random.key(0), (20, 16)))
  words = (embedding / made.embedding_scale)[[3, 7]]
  assert distance(made.pool.prompts[...], words).max() < 1e-5
  assert distance(made.pool.prompts[...], words[:1]).max() > 0.1


def test_text_without_words_and_unknown_initialisations_are_rejected():
  with pytest.raises(UserError, match="init_text: expected words to start from"):
    prompter("text", [])
  with pytest.raises(UserError, match="random, vocabulary, text; got 'zeros'"):
    prompter("zeros", [])


def test_an_unknown_fusion_or_pool_mode_is_refused_with_the_known_ones():
  with pytest.raises(UserError, match=r"fusion: .* static, learned, dynamic; got 'magic'"):
    prompter("vocabulary", [], fusion="magic")
  with pytest.raises(UserError, match=r"pool_mode: .* adaptive, fixed, dense; got 'magic'"):
    prompter("vocabulary", [], pool_mode="magic")


def test_sizes_follow_the_config():
  model = make_model(pool=5, tokens=3)
  assert model.params["pool"]["prompts"].shape == (5, 3, 16)
  assert model.params["mapper"]["project"]["kernel"].shape == (CLIP.vision.width, 16)
  assert model.params["fusion"]["score"]["bias"].shape == (4,)


def test_local_leaves_are_one_branch_and_join_inverts_split():
  model = make_model(contrast=True)
  shared, own = split_local(model.params)
  assert set(own) == {LOCAL} and LOCAL not in shared
  assert set(own[LOCAL]) == {"prompt", "contrast"}
  assert jax.tree.structure(join_local(shared, own)) == jax.tree.structure(model.params)
  assert split_local(model.params, ("*",)) == ({}, model.params)


def test_without_local_prompts_all_leaves_are_shared_and_sources_are_three():
  model = make_model(local=False)
  assert split_local(model.params)[1] == {}
  assert model.params["fusion"]["score"]["bias"].shape == (3,)


def test_a_row_that_is_not_personal_does_not_see_the_local_prompt():
  model = make_model()
  batch = make_batch(0, 6)._replace(personal=jnp.arange(6) < 3)
  local = model.params["local"]["prompt"]
  other = model.params | {"local": {"prompt": local + 1}}
  prompts = [
    np.asarray(model.encode(params, batch).prompted.prompt) for params in (model.params, other)
  ]
  moved = np.abs(prompts[0] - prompts[1]).max(axis=(1, 2))
  assert moved[:3].min() > 1e-3
  np.testing.assert_array_equal(moved[3:], 0)
