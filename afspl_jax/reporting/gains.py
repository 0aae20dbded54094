"""What sites gain by joining a federation, in words and numbers: for runs with `fed.compare`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from afspl_jax.evaluation.scores import ANSWERS

JOINED, ALONE, POOLED = "test_personal", "test_alone", "test_pooled"  # views in metrics.jsonl
_DECIMALS = 2
_NAMES = dict(zip(("cider", *ANSWERS), ("CIDEr", "exact match", "VQA accuracy"), strict=True))


class Gain(NamedTuple):
  """What all sites together gain in one score."""

  score: str  # its key, such as "cider"
  joined: float  # by the personalised models
  alone: float
  pooled: float | None  # by one model of all data
  better: int  # sites whose personalised model is better than the one that they trained alone
  sites: int  # that have this score

  @property
  def difference(self) -> float:
    """Personalised minus alone, as the rounded figures show it."""
    return round(self.joined, _DECIMALS) - round(self.alone, _DECIMALS)


def find_gains(
  views: Mapping[str, Mapping[str, Any]], sites: Sequence[Mapping[str, Any]]
) -> list[Gain]:
  """The gain in each score of own test examples; none without `fed.compare`.

  Args:
    views: the last line of each view in metrics.jsonl, by its name.
    sites: the lines of sites.jsonl.
  """
  joined, alone, pooled = (views.get(view, {}) for view in (JOINED, ALONE, POOLED))
  gains = []
  for score in _NAMES:
    if joined.get(score) is None or alone.get(score) is None:
      continue
    ours, theirs = f"personal_{score}", f"alone_{score}"
    scored = [site for site in sites if None not in (site.get(ours), site.get(theirs))]
    better = sum(site[ours] > site[theirs] for site in scored)
    known = joined[score], alone[score], pooled.get(score)
    gains.append(Gain(score, *known, better, len(scored)))
  return gains


def describe_gains(gains: Sequence[Gain]) -> str:
  """The gains as one sentence; "" for none."""
  return f"By joining, sites {' and '.join(map(_clause, gains))}" if gains else ""


def _clause(gain: Gain) -> str:
  """One gain or loss, by the sign of the difference."""
  size = f"{abs(gain.difference):.{_DECIMALS}f}"
  verb = "gain" if gain.difference > 0 else "lose"
  change = f"{verb} {size} {_NAMES[gain.score]} on average"
  if not float(size):
    change = f"neither gain nor lose {_NAMES[gain.score]} on average"
  figures = f"alone {gain.alone:.{_DECIMALS}f}, personalised {gain.joined:.{_DECIMALS}f}"
  details = [figures, f"{gain.better} of {gain.sites} sites gain"]
  if gain.pooled is not None:
    details.append(f"all data in one place {gain.pooled:.{_DECIMALS}f}")
  return f"{change} ({'; '.join(details)})"
