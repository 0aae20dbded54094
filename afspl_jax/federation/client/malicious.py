"""Sites that harm the federation on purpose: what a method withstands can be measured.

Each kind of attack changes one thing at the hostile sites, and nothing anywhere else:

- "sign_flip": what is sent of the update, taken to the other side of the global params.
- "scale": what is sent of the update, times `attack.scale`.
- "label_flip": the targets of local training; an example has those of another one of the site:
  a caption that of another image, an answer that to another question which begins alike.

A hostile site says the truth of all else: its number of examples, its loss.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from fractions import Fraction

import jax
import numpy as np
from jaxtyping import Int

from afspl_jax.config.experiment import Attack, choice
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import Trainer, Update
from afspl_jax.types import Example, Params

KINDS = ("none", "sign_flip", "scale", "label_flip")


def check(attack: Attack, num_sites: int) -> None:
  """Raises UserError unless `attack` is none, or one by at least one of `num_sites` sites."""
  choice("attack.kind", attack.kind, KINDS)
  if (attack.kind == "none") != (_count(attack, num_sites) == 0):
    raise UserError(
      f"attack.share: expected 0 with attack.kind=none, else at least one of {num_sites} sites;"
      f" got {attack.share} with attack.kind={attack.kind}"
    )


def malicious_sites(sites: Collection[str], attack: Attack, seed: int) -> tuple[str, ...]:
  """The hostile ones of the sites that take part, sorted; they depend on names and seed alone."""

  def lot(site: str) -> bytes:
    return hashlib.sha256(f"{seed}/hostile/{site}".encode()).digest()

  return tuple(sorted(sorted(sites, key=lot)[: _count(attack, len(sites))]))


def _count(attack: Attack, num_sites: int) -> int:
  return math.floor(Fraction(str(attack.share)) * num_sites)


def wrong_targets(
  examples: Sequence[Example], hostile: Sequence[Int[np.ndarray, " rows"]]
) -> Int[np.ndarray, " examples"]:
  """For each example, the one whose references a "label_flip" teaches; of honest sites, itself.

  Sites' examples are exchanged among those of one kind: captions, or questions with the same first
  two words. They are sorted by their references and turned by half, so that an answer stays right
  only where more than half of the kind have it.

  Args:
    examples: of a split.
    hostile: the rows of each hostile site.
  """
  taught = np.arange(len(examples))
  for rows in hostile:
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in sorted(rows.tolist(), key=lambda row: (examples[row].references, row)):
      kinds[tuple(examples[row].question.split()[:2])].append(row)
    for alike in kinds.values():
      taught[alike] = np.roll(alike, len(alike) // 2)
  return taught


class MaliciousTrainer:
  """A trainer some of whose clients send something else than what they found.

  Args:
    trainer: does the work.
    hostile: names of the clients that do not send it.
    factor: what these multiply their update by.
  """

  def __init__(self, trainer: Trainer, hostile: Collection[str], factor: float):
    self._trainer, self._hostile, self._factor = trainer, frozenset(hostile), factor
    self.site, self.num_examples = trainer.site, trainer.num_examples

  def train_cohort(
    self, params: Params, clients: Sequence[int], round: int, *, control: Params | None = None
  ) -> dict[int, Update | Exception]:
    """Trains the clients; the update of a hostile one is not what training found."""
    given = {} if control is None else {"control": control}
    results = self._trainer.train_cohort(params, clients, round, **given)
    return {
      client: self._changed(result, params)
      if self.site(client) in self._hostile and not isinstance(result, Exception)
      else result
      for client, result in results.items()
    }

  def _changed(self, result: Update, start: Params) -> Update:
    def sent(found, start):
      update = np.subtract(found, start, dtype=np.float64)
      return (start + self._factor * update).astype(start.dtype)

    return result._replace(params=jax.tree.map(sent, result.params, start))


def with_attack(trainer: Trainer, hostile: Collection[str], attack: Attack) -> Trainer:
  """The trainer, with what hostile clients do to what they send."""
  factor = {"sign_flip": -1.0, "scale": attack.scale}.get(attack.kind)
  return trainer if factor is None else MaliciousTrainer(trainer, hostile, factor)
