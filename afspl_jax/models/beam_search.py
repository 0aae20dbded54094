"""Beam search without a model: which texts of a row live on, and which are the best to have ended.

The rules are those of transformers 5.23 `_beam_search` with `early_stopping=False`: of the
`2 * beams` likeliest continuations those that do not end live on, and those of the first `beams`
that do end compete, by `sum of log-probabilities / tokens**length_penalty`, for `beams` places. A
row is done when these are taken and the best living text, ended now, would not get one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The score of a text that is none: below all others, and finite so that sums of two stay in order.
NONE = -1e9


class Beams(NamedTuple):
  """The texts of each row; ids begin with the start token, and are padded."""

  ids: Int[Array, "b beams t"]  # of living texts
  scores: Float[Array, "b beams"]  # of living texts: sums of log-probabilities, best first
  ended: Float[Array, "b beams"]  # of texts that have ended, with the penalty; best first
  best: Int[Array, "b t"]  # the first of `ended`
  done: Bool[Array, " b"]


def start(rows: int, beams: int, max_tokens: int, pad: int) -> Beams:
  """One empty text a row; the others are none, or every text would come `beams` times."""
  return Beams(
    ids=jnp.full((rows, beams, 1 + max_tokens), pad, jnp.int32),
    scores=jnp.full((rows, beams), NONE).at[:, 0].set(0.0),
    ended=jnp.full((rows, beams), NONE),
    best=jnp.full((rows, 1 + max_tokens), pad, jnp.int32),
    done=jnp.zeros((rows,), bool),
  )


def advance(
  texts: Beams,
  gains: Float[Array, "b beams twice"],
  tokens: Int[Array, "b beams twice"],
  step: Int[Array, ""],
  *,
  end: int,
  length_penalty: float,
) -> tuple[Beams, Int[Array, "b beams"]]:
  """Lengthens the texts by a token.

  Args:
    texts: of the step before.
    gains: log-probabilities of each text's `2 * beams` likeliest tokens, best first.
    tokens: these tokens.
    step: number of tokens so far, the start token not counted.
    end: the end token.
    length_penalty: exponent of a text's length, its end token counted; above 0 favours long texts.

  Returns:
    The texts, and which of the old ones each living one continues.
  """
  rows, beams, room = texts.ids.shape
  lengths = np.arange(1, room, dtype=np.float64) ** length_penalty
  penalty = jnp.asarray(lengths, jnp.float32)[step]
  # The likeliest of all are among the likeliest of each text.
  sums = (texts.scores[..., None] + gains).reshape(rows, -1)
  sums, chosen = jax.lax.top_k(sums, 2 * beams)
  parents, tokens = chosen // gains.shape[2], _take(tokens.reshape(rows, -1), chosen)
  at_end = tokens == end

  over = (at_end | (step + 2 == room))[:, :beams] & ~texts.done[:, None]
  rivals = jnp.where(over, sums[:, :beams] / penalty, NONE)
  ended, places = jax.lax.top_k(jnp.concatenate([texts.ended, rivals], axis=1), beams)
  winner = jnp.maximum(places[:, :1] - beams, 0)
  ids = _append(texts.ids, _take(parents, winner), _take(tokens, winner), step)[:, 0]
  best = jnp.where(places[:, :1] >= beams, ids, texts.best)

  scores, living = jax.lax.top_k(sums + jnp.where(at_end, NONE, 0.0), beams)
  parents = _take(parents, living)
  ids = _append(texts.ids, parents, _take(tokens, living), step)
  # Not that of a longer text, though with a penalty it could be better: transformers' heuristic.
  done = texts.done | ~(scores[:, 0] / penalty > ended[:, -1])
  return Beams(ids, scores, ended, best, done), parents


def _take(x: Int[Array, "b m"], indices: Int[Array, "b i"]) -> Int[Array, "b i"]:
  return jnp.take_along_axis(x, indices, axis=1)


def _append(
  ids: Int[Array, "b beams t"],
  parents: Int[Array, "b i"],
  tokens: Int[Array, "b i"],
  step: Int[Array, ""],
) -> Int[Array, "b i t"]:
  """The texts `parents`, each with its token behind it."""
  ids = jnp.take_along_axis(ids, parents[..., None], axis=1)
  return jax.lax.dynamic_update_slice(ids, tokens[..., None], (0, 0, step + 1))
