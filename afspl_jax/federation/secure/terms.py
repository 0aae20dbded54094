"""Settings of secure aggregation: valid combinations, and the terms that all sides share."""

from dataclasses import dataclass

from scipy.stats import binom

from afspl_jax.config.experiment import Experiment
from afspl_jax.errors import UserError
from afspl_jax.federation.contracts import POISSON, WITHIN
from afspl_jax.federation.privacy import budget
from afspl_jax.federation.secure.graph import FEWEST
from afspl_jax.federation.secure.party import Rules
from afspl_jax.federation.secure.quantise import Quantiser


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
  rules = Rules(secure.threshold, secure.neighbours, max(FEWEST, config.fed.min_replies))
  weight = 1 if alike else config.fed.max_examples
  return Terms(rules, secure.bits, privacy.clip, weight, counts)


def sizes_fit(config: Experiment) -> None:
  """Checks that the sum of the largest round is exact, where there is secure aggregation.

  Raises:
    UserError: naming the settings that make it too large.
  """
  terms, fed = terms_of(config), config.fed
  if terms is None:
    return
  most = budget.num_participants(config) if fed.selection == POISSON else fed.clients_per_round
  try:
    terms.quantiser(1, most, None)
  except ValueError as error:
    raise UserError(str(error)) from error


def too_small_rounds(config: Experiment) -> float:
  """How many rounds of Poisson sampling have FEWEST clients or fewer, on average of whole runs.

  Such a round has no sum, or shows its size by having just enough clients for one.
  """
  fed, everyone = config.fed, budget.num_participants(config)
  return fed.rounds * float(binom.cdf(FEWEST, everyone, fed.clients_per_round / everyone))
