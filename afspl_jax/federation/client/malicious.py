"""Malicious clients: studies measure which attacks a strategy withstands.

An attack changes one thing at the malicious clients, and nothing anywhere else:

- "sign_flip": the update that is sent has the opposite sign.
- "scale": the update that is sent is multiplied by `attack.scale`.
- "label_flip": local training uses wrong targets. An example gets those of another example of the
  same client: a caption of another image, or the answer to a question with the same beginning.

A malicious client reports its number of examples and its loss truthfully.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from fractions import Fraction

import jax
import numpy as np
from jaxtyping import Int

from afspl_jax.config.experiment import Attack
from afspl_jax.federation.contracts import Trainer, Update
from afspl_jax.types import Example, Params


def malicious_sites(sites: Collection[str], attack: Attack, seed: int) -> tuple[str, ...]:
  """The malicious ones of the sites that take part, sorted; chosen by names and seed alone."""

  def rank(site: str) -> bytes:
    return hashlib.sha256(f"{seed}/hostile/{site}".encode()).digest()

  return tuple(sorted(sorted(sites, key=rank)[: num_malicious(attack, len(sites))]))


def num_malicious(attack: Attack, num_sites: int) -> int:
  """How many of `num_sites` sites an attack makes malicious."""
  return math.floor(Fraction(str(attack.share)) * num_sites)


def wrong_targets(
  examples: Sequence[Example], malicious: Sequence[Int[np.ndarray, " rows"]]
) -> Int[np.ndarray, " examples"]:
  """For each example, the example whose references "label_flip" trains it on.

  Examples of honest clients keep their own. A malicious client exchanges references among examples
  of one kind: captions, or questions with the same first two words. They are sorted by their
  references and rotated by half, so that a target stays right only if more than half of the kind
  have it.

  Args:
    examples: of a split.
    malicious: the rows of each malicious client.
  """
  taught = np.arange(len(examples))
  for rows in malicious:
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in sorted(rows.tolist(), key=lambda row: (examples[row].references, row)):
      kinds[tuple(examples[row].question.split()[:2])].append(row)
    for alike in kinds.values():
      taught[alike] = np.roll(alike, len(alike) // 2)
  return taught


class MaliciousTrainer:
  """A trainer that multiplies the updates of its malicious clients by a factor.

  Args:
    trainer: trains all clients.
    malicious: names of the malicious ones.
    factor: multiplies their updates.
  """

  def __init__(self, trainer: Trainer, malicious: Collection[str], factor: float):
    self._trainer, self._malicious, self._factor = trainer, frozenset(malicious), factor
    self.site, self.num_examples = trainer.site, trainer.num_examples

  def train_cohort(
    self, params: Params, clients: Sequence[int], round: int, *, control: Params | None = None
  ) -> dict[int, Update | Exception]:
    """Trains the clients, and changes the updates of the malicious ones."""
    given = {} if control is None else {"control": control}
    results = self._trainer.train_cohort(params, clients, round, **given)
    return {
      client: self._changed(result, params)
      if self.site(client) in self._malicious and not isinstance(result, Exception)
      else result
      for client, result in results.items()
    }

  def _changed(self, result: Update, start: Params) -> Update:
    def sent(found, start):
      update = np.subtract(found, start, dtype=np.float64)
      return (start + self._factor * update).astype(start.dtype)

    return result._replace(params=jax.tree.map(sent, result.params, start))


def with_attack(trainer: Trainer, malicious: Collection[str], attack: Attack) -> Trainer:
  """The trainer whose malicious clients change their updates as the attack says."""
  factor = {"sign_flip": -1.0, "scale": attack.scale}.get(attack.kind)
  return trainer if factor is None else MaliciousTrainer(trainer, malicious, factor)
