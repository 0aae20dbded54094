"""Beam search without a model: which texts of a row continue, and which ended texts are best.

The rules are those of transformers 5.23 `_beam_search` with `early_stopping=False`. Of the
`2 * beams` most likely continuations, those that do not end continue. Those of the first `beams`
that end compete for `beams` places, by `sum of log-probabilities / tokens**length_penalty`. A row
is done when all places are taken and the best continuing text, ended now, would not get one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The score of an empty place: below all others, and finite so that sums of two keep their order.
NONE = -1e9


class Beams(NamedTuple):
  """The texts of each row; ids begin with the start token and are padded."""

  ids: Int[Array, "b beams t"]  # of continuing texts
  scores: Float[Array, "b beams"]  # of continuing texts: sums of log-probabilities, best first
  ended: Float[Array, "b beams"]  # scores of ended texts, with the length penalty; best first
  best: Int[Array, "b t"]  # ids of the first of `ended`
  done: Bool[Array, " b"]


def start(rows: int, beams: int, max_tokens: int, pad: int, before: int) -> Beams:
  """One text without tokens for each row; if all places had one, texts would occur repeatedly.

  Args:
    rows: b.
    beams: places of a row.
    max_tokens: of the longest text.
    pad: fills texts up.
    before: comes before each text.
  """
  return Beams(
    ids=jnp.full((rows, beams, 1 + max_tokens), pad, jnp.int32).at[..., 0].set(before),
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
  """Appends a token to each text.

  Args:
    texts: from the previous step.
    gains: log-probabilities of each text's `2 * beams` most likely tokens, best first.
    tokens: these tokens.
    step: number of tokens so far, without the start token.
    end: the end token.
    length_penalty: exponent of a text's length, end token included; above 0 favours long texts.

  Returns:
    The texts, and for each continuing text the index of the text it continues.
  """
  rows, beams, room = texts.ids.shape
  lengths = np.arange(1, room, dtype=np.float64) ** length_penalty
  penalty = jnp.asarray(lengths, jnp.float32)[step]
  # The most likely of all are among the most likely of each text.
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
  # As transformers, ignores that a longer text could score better because of the penalty.
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
  """The texts `parents`, each with its token appended."""
  ids = jnp.take_along_axis(ids, parents[..., None], axis=1)
  return jax.lax.dynamic_update_slice(ids, tokens[..., None], (0, 0, step + 1))
