"""The contrastive loss against a plain NumPy one, and what it must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afspl_jax.training.losses import contrastive


def rows(seed: int, number: int = 7, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
  """Random representations and caption features, of all sorts of length."""
  rng = np.random.default_rng(seed)
  states, captions = rng.normal(size=(2, number, width)) * rng.uniform(0.1, 9, (2, number, 1))
  return states.astype(np.float32), captions.astype(np.float32)


def info_nce(states, captions, temperature) -> float:
  """The same, row by row and in float64."""
  states, captions = states.astype(np.float64), captions.astype(np.float64)
  part = [i for i, caption in enumerate(captions) if caption.any()]

  def score(i, j):
    lengths = np.linalg.norm(states[i]) * np.linalg.norm(captions[j])
    return np.exp(states[i] @ captions[j] / lengths / temperature)

  total = 0.0
  for i in part:
    others = [j for j in part if j == i or (captions[j] != captions[i]).any()]
    total -= np.log(score(i, i) / sum(score(i, j) for j in others)) / 2
    total -= np.log(score(i, i) / sum(score(j, i) for j in others)) / 2
  return total / max(len(part), 1)


def value_and_gradient(states, captions, temperature=0.1):
  loss = lambda x: contrastive(x, jnp.asarray(captions), temperature)  # noqa: E731
  return jax.jit(jax.value_and_grad(loss))(jnp.asarray(states))


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_the_loss_is_symmetric_info_nce_over_included_rows(temperature):
  states, captions = rows(0)
  captions[[1, 4]] = 0
  captions[5] = captions[2]
  ours = contrastive(jnp.asarray(states), jnp.asarray(captions), temperature)
  assert ours > 0.1
  np.testing.assert_allclose(ours, info_nce(states, captions, temperature), rtol=1e-5)


def test_the_gradient_is_the_slope_of_the_reference_and_following_it_helps():
  states, captions = rows(1)
  captions[3] = 0
  value, gradient = value_and_gradient(states, captions, 0.5)
  for i, j in np.ndindex(*states.shape):
    step = np.zeros_like(states)
    step[i, j] = 1e-3
    ends = [info_nce(states + sign * step, captions, 0.5) for sign in (1, -1)]
    np.testing.assert_allclose(gradient[i, j], (ends[0] - ends[1]) / 2e-3, atol=2e-4)
  assert np.abs(np.delete(gradient, 3, axis=0)).max(axis=1).min() > 1e-4
  assert info_nce(states - 0.1 * np.asarray(gradient), captions, 0.5) < value


def test_a_row_without_a_caption_is_neither_anchor_nor_negative():
  states, captions = rows(2)
  captions[[0, 6]] = 0
  without, _ = value_and_gradient(states[1:6], captions[1:6])
  changed = states.copy()
  changed[[0, 6]] = -3 * captions[3]
  for some in (states, changed):
    value, gradient = value_and_gradient(some, captions)
    np.testing.assert_allclose(value, without, rtol=1e-6)
    assert not gradient[np.array([0, 6])].any()


def test_rows_of_one_caption_are_not_each_others_negatives():
  states, captions = rows(3, number=3)
  twins = np.stack([captions[0], captions[0], captions[1]])
  first, _ = value_and_gradient(states, twins)
  np.testing.assert_allclose(first, info_nce(states, twins, 0.1), rtol=1e-5)
  all_one = np.repeat(captions[:1], 3, axis=0)
  value, gradient = value_and_gradient(states, all_one)
  assert abs(value) < 1e-6 and np.abs(gradient).max() < 1e-5
  apart = all_one + 1e-3 * captions  # nearly alike is not alike
  assert value_and_gradient(states, apart)[0] > 0.5


def test_the_order_of_rows_does_not_matter():
  states, captions = rows(4)
  captions[2] = 0
  order = np.random.default_rng(0).permutation(len(states))
  value, gradient = value_and_gradient(states, captions)
  other_value, other_gradient = value_and_gradient(states[order], captions[order])
  np.testing.assert_allclose(other_value, value, rtol=1e-6)
  np.testing.assert_allclose(other_gradient, gradient[order], rtol=1e-5, atol=1e-6)


def test_lengths_do_not_matter():
  states, captions = rows(5)
  value, _ = value_and_gradient(states, captions)
  np.testing.assert_allclose(value_and_gradient(100 * states, captions / 9)[0], value, rtol=1e-5)


@pytest.mark.parametrize("taking_part", [0, 1])
def test_fewer_than_two_captions_give_no_loss_and_no_gradient(taking_part):
  states, captions = rows(6)
  captions[taking_part:] = 0
  value, gradient = value_and_gradient(states, captions)
  assert value == 0 and not gradient.any()


def test_gradients_stay_finite_where_representations_vanish():
  states, captions = rows(7)
  states[0], states[1], captions[[1, 2]] = 0, 1e-30, 0
  states[3] *= 1e6
  for temperature in (0.5, 1e-3):
    value, gradient = value_and_gradient(states, captions, temperature)
    assert np.isfinite(value) and np.isfinite(gradient).all()
  value, gradient = value_and_gradient(np.zeros_like(states), np.zeros_like(captions))
  assert value == 0 and not gradient.any()


def test_bfloat16_inputs_are_compared_in_float32():
  states, captions = (jnp.asarray(x, jnp.bfloat16) for x in rows(8))
  ours = contrastive(states, captions, 0.05)
  assert ours.dtype == jnp.float32
  exact = info_nce(*(np.asarray(x, np.float32) for x in (states, captions)), 0.05)
  np.testing.assert_allclose(ours, exact, rtol=1e-5)
