"""Which texts live on and which have ended, worked out by hand."""

import jax.numpy as jnp
import numpy as np

from afspl_jax.models import beam_search

END = 1


def advance(texts, gains, tokens, step, length_penalty=1.0):
  gains, tokens = (jnp.asarray([x]) for x in (np.array(gains, np.float32), np.array(tokens)))
  step = jnp.asarray(step, jnp.int32)
  return beam_search.advance(
    texts, gains, tokens.astype(jnp.int32), step, end=END, length_penalty=length_penalty
  )


def test_ended_texts_compete_until_a_row_is_done():
  texts = beam_search.start(1, 2, 4, 0, 0)
  first = [[-1.0, -2.0, -3.0, -4.0]] * 2
  # Of the second text nothing counts: both are still the one empty text. The end token is third
  # of four, behind as many others as there are beams, and so does not count either.
  texts, parents = advance(texts, first, [[7, 8, END, 9]] * 2, 0)
  np.testing.assert_array_equal(parents, [[0, 0]])
  np.testing.assert_array_equal(texts.ids[0, :, :2], [[0, 7], [0, 8]])
  np.testing.assert_allclose(texts.scores, [[-1, -2]])
  np.testing.assert_array_equal(texts.ended, [[beam_search.NONE] * 2])

  # Sums: 7 END -1.5, 8 5 -2.25, 7 6 -3, 8 END -4.
  gains = [[-0.5, -2.0, -6.0, -7.0], [-0.25, -2.0, -6.0, -7.0]]
  texts, parents = advance(texts, gains, [[END, 6, 2, 3], [5, END, 2, 3]], 1)
  np.testing.assert_array_equal(parents, [[1, 0]])
  np.testing.assert_array_equal(texts.ids[0, :, :3], [[0, 8, 5], [0, 7, 6]])
  np.testing.assert_allclose(texts.ended, [[-1.5 / 2, beam_search.NONE]])
  np.testing.assert_array_equal(texts.best, [[0, 7, END, 0, 0]])
  assert not texts.done[0]

  # Sums: 8 5 END -2.5, 7 6 END -3.25, 8 5 4 -3.75; per token -0.83, -1.08 (not a place: two are
  # taken by -0.75 and -0.83) and -1.25, which is worse than both.
  gains = [[-0.25, -1.5, -6.0, -7.0], [-0.25, -2.0, -6.0, -7.0]]
  texts, _ = advance(texts, gains, [[END, 4, 2, 3], [END, 4, 2, 3]], 2)
  np.testing.assert_allclose(texts.ended, [[-1.5 / 2, -2.5 / 3]], rtol=1e-6)
  np.testing.assert_array_equal(texts.best, [[0, 7, END, 0, 0]])
  assert texts.done[0]

  # A row that is done stays as it is, whatever comes.
  later, _ = advance(texts, np.zeros((2, 4)), [[END, 4, 2, 3], [END, 4, 2, 3]], 3)
  np.testing.assert_array_equal(later.ended, texts.ended)
  np.testing.assert_array_equal(later.best, texts.best)


def test_a_length_penalty_changes_which_text_is_best():
  for length_penalty, best in ((1.0, [0, END, 0]), (3.0, [0, 7, 9])):
    texts = beam_search.start(1, 2, 2, 0, 0)
    texts, _ = advance(
      texts, [[-1.0, -1.5, -8.0, -9.0]] * 2, [[END, 7, 2, 3]] * 2, 0, length_penalty
    )
    # At the longest length a text ends with any token.
    gains = [[-1.5, -7.0, -8.0, -9.0], [-5.0, -7.0, -8.0, -9.0]]
    texts, _ = advance(texts, gains, [[9, 8, 2, 3], [9, 8, 2, 3]], 1, length_penalty)
    np.testing.assert_array_equal(texts.best, [best])
