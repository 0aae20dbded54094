"""Settings of secure aggregation: valid combinations, and the terms that all sides share."""

from dataclasses import dataclass

from scipy.stats import binom

from afspl_jax.config.experiment import Experiment, expect
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.contracts import POISSON, WITHIN
from afspl_jax.federation.privacy import budget
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.secure.party import FEWEST, Rules
from afspl_jax.federation.secure.quantise import Quantiser

_BITS = (8, 32)


@dataclass(frozen=True)
class Terms:
  """What server and sites must have in common; each side makes them from its own settings."""

  rules: Rules
  bits: int
  clip: float  # bound on an update's norm, if the round has none
  max_weight: int
  counts: tuple[str, ...] = ()  # metrics of 0 or 1 that are summed

  @property
  def weighted(self) -> bool:
    """Whether updates are weighted by the number of examples."""
    return self.max_weight > 1

  def quantiser(self, size: int, clients: int, bound: float | None) -> Quantiser:
    """The conversion of updates with `size` numbers of `clients` clients.

    Raises:
      ValueError: they cannot be summed.
    """
    clip = self.clip if bound is None else bound
    return Quantiser(size, clip, self.bits, clients, self.max_weight, len(self.counts))


def terms_of(config: Experiment) -> Terms | None:
  """The terms, if the experiment has secure aggregation."""
  secure, privacy = config.secure, config.privacy
  if not secure.aggregation:
    return None
  alike = budget.is_private(config)
  # The number of clipped updates is summed, too, so that the bound can be chosen; except where it
  # would be a further release without noise.
  counts = (WITHIN,) if budget.first_bound(privacy) or not alike else ()
  rules = Rules(secure.threshold, secure.neighbours)
  weight = 1 if alike else config.fed.max_examples
  return Terms(rules, secure.bits, privacy.clip, weight, counts)


def check(config: Experiment) -> None:
  """Refuses settings by which there is no sum under masks, or one that tells too much.

  Raises:
    UserError: naming the field, what it may be, and what it is.
  """
  secure, fed = config.secure, config.fed
  low, high = _BITS
  ranges = {
    "threshold": (
      0.5 < secure.threshold < 1,
      "a share above 0.5, below which a server could ask some of a client's neighbours for one of"
      " its secrets and the others for the other, and below 1",
    ),
    "neighbours": (
      secure.neighbours == 0 or 2 <= secure.neighbours < budget.clients(config),
      f"0, or from 2 to the number of other clients, {budget.clients(config) - 1}",
    ),
    "bits": (low <= secure.bits <= high, f"{low} to {high}"),
  }
  for name, (holds, expected) in ranges.items():
    expect(f"secure.{name}", getattr(secure, name), holds, expected)
  terms = terms_of(config)
  if terms is None:
    return
  rows, strategy = config.uplink.select, strategies.get(fed.strategy, budget.clients(config))
  expect(
    "fed.clients_per_round",
    fed.clients_per_round,
    fed.clients_per_round >= FEWEST,
    f"at least {FEWEST} with secure.aggregation: of two, each finds the other's in the sum",
  )
  expect(
    "uplink.select",
    rows,
    rows in uplink.SAME_ROWS,
    f"{' or '.join(uplink.SAME_ROWS)} with secure.aggregation, as sums are of equal rows",
  )
  expect(
    "fed.strategy",
    fed.strategy,
    strategies.of_mean(strategy),
    "one that needs nothing of the updates but their mean with secure.aggregation",
  )
  expect("fed.share", fed.share, fed.share == "all", "all with secure.aggregation")
  expect(
    "fed.selection",
    fed.selection,
    fed.selection in ("uniform", "round_robin", POISSON),
    "uniform, round_robin or poisson with secure.aggregation: the others go by what is hidden",
  )
  expect(
    "privacy.dp",
    config.privacy.dp,
    config.privacy.dp != "local",
    "none or central with secure.aggregation: with the noise of local, numbers have no bound that"
    " they could be sent in",
  )
  expect(
    "fed.max_update_norm",
    fed.max_update_norm,
    fed.max_update_norm == 0,
    "0 with secure.aggregation: privacy.clip bounds what the server cannot see",
  )
  everyone = budget.clients(config)
  most = everyone if fed.selection == POISSON else fed.clients_per_round
  # A round that is skipped for its size tells that size; so does one that has just enough for it.
  if fed.selection == POISSON:
    few = fed.rounds * float(binom.cdf(FEWEST, everyone, fed.clients_per_round / everyone))
    expect(
      "fed.clients_per_round",
      fed.clients_per_round,
      few <= config.privacy.delta / 10,
      f"so many with poisson and secure.aggregation that a round of {FEWEST}, or a smaller one,"
      " which has no sum, is far less likely than privacy.delta",
    )
  try:
    terms.quantiser(1, most, None)
  except ValueError as error:
    raise UserError(str(error)) from error
