"""Which leaves of a prompter stay at a client, and a mapper whose ends may."""

import jax
import numpy as np
import pytest

from afspl_jax.config.experiment import Fed
from afspl_jax.errors import UserError
from afspl_jax.models.prompter.local import (
  check_patterns,
  join_local,
  local_patterns,
  split_like,
  split_local,
)
from afspl_jax.storage.pytrees import named_leaves
from tests.conftest import make_batch, make_model


@pytest.mark.parametrize(
  "local_leaves, stay",
  [
    ("", ()),
    ("mapper/*", ("mapper/place", "mapper/project/bias", "mapper/project/kernel")),
    ("mapper/place,*/bias", ("mapper/place", "fusion/hidden/bias", "fusion/score/bias")),
  ],
)
def test_leaves_that_match_a_pattern_stay_with_the_local_prompt(model, local_leaves, stay):
  patterns = local_patterns(Fed(local_leaves=local_leaves))
  shared, local = split_local(model.params, patterns)
  names = named_leaves(model.params).keys()
  biases = {name for name in names if local_leaves.endswith("bias") and name.endswith("/bias")}
  assert named_leaves(local).keys() == {"local/prompt", *stay, *biases}
  assert named_leaves(shared).keys() == names - named_leaves(local).keys()
  joined = join_local(shared, local)
  assert jax.tree.structure(joined) == jax.tree.structure(model.params)
  assert all(a is b for a, b in zip(*map(jax.tree.leaves, (joined, model.params)), strict=True))
  assert split_like(model.params, shared) == (shared, local)


def test_no_sharing_makes_all_leaves_local(model):
  assert split_local(model.params, local_patterns(Fed(share="none"))) == ({}, model.params)
  assert split_like(model.params, {}) == ({}, model.params)


@pytest.mark.parametrize("local_leaves", ["mappr/*", "mapper/*,mappr/*"])
def test_a_pattern_without_a_leaf_is_named_with_the_leaves_that_there_are(model, local_leaves):
  says = r"fed.local_leaves: expected patterns of leaves, of: .*mapper/place.*; got 'mappr/\*'"
  with pytest.raises(UserError, match=says):
    check_patterns(model.params, Fed(local_leaves=local_leaves))


def test_some_leaves_must_be_shared(model):
  with pytest.raises(UserError, match=r"fed.local_leaves: .* or fed.share=none; got '\*'"):
    check_patterns(model.params, Fed(local_leaves="*"))
  check_patterns(model.params, Fed(share="none"))


def test_an_adapter_adds_up_middle_down_to_the_linear_map():
  model, batch = make_model(mapper="adapter:3"), make_batch(0, 5)
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
  ends = jax.tree.map(draw, model.params["mapper"]["adapter"])
  moved = model.params | {"mapper": model.params["mapper"] | {"adapter": ends}}
  mapper = {name: leaf for name, leaf in model.params["mapper"].items() if name != "adapter"}
  plain = model.params | {"mapper": mapper}
  linear = make_model(mapper="linear").captioner.prompt(plain, batch).visual
  np.testing.assert_array_equal(model.captioner.prompt(model.params, batch).visual, linear)

  x = np.asarray(batch.tokens, np.float64)[:, 1:].reshape(5, 2, 2, 2, 2, -1).mean(axis=(2, 4))
  x = x.reshape(5, 4, -1) - x.reshape(5, 4, -1).mean(axis=-1, keepdims=True)
  x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6)
  gelu = lambda a: a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))  # noqa: E731
  affine = lambda a, part: a @ ends[part]["kernel"] + ends[part]["bias"]  # noqa: E731
  added = affine(gelu(affine(gelu(affine(x, "down")), "middle")), "up")
  found = model.captioner.prompt(moved, batch).visual - linear
  project = model.params["mapper"]["project"]
  affine_part = x @ np.asarray(project["kernel"]) + np.asarray(project["bias"])
  scale = np.linalg.norm(linear) / np.linalg.norm(affine_part)  # of the embeddings
  np.testing.assert_allclose(found, added * scale, rtol=1e-4, atol=1e-4)
