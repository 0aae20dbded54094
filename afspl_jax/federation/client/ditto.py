"""Ditto: beside the global model, each site trains a personal copy that is held near to it.

Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", Algorithm 1. In
every round that a site takes part in, it trains the global params w as the strategy asks, and takes
as many steps of its personal copy v by

  grad F(v) + lam (v - w)

with w as it was received. The copy stays at the site, and is its personalised model. Here a step is
one of Adam by that gradient; the shared leaves are held near w, and the local ones are free. A copy
begins as w and the site's local leaves when the site first takes part, which is the paper's common
start where all sites take part in round 1. It sees the same batches as w, and its local prompt in
all of their rows.
"""

from collections.abc import Sequence

from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.federation.contracts import Update, attempt
from afspl_jax.types import Params


class DittoTrainer:
  """Trains the global params and the personal copies of this process's clients.

  The copy of a round is on disk before the global params are trained: nothing is sent of a client
  whose copy fails.

  Args:
    trainer: of the global params.
    copies: of whole models, which its program holds near the global params.
  """

  private_batches = None  # DP-SGD is rejected: its budget is of the rounds

  def __init__(self, trainer: LocalTrainer, copies: LocalTrainer):
    self._trainer, self._copies = trainer, copies
    self.site, self.num_examples = trainer.site, trainer.num_examples

  def personal(self, shared: Params, client: int, round: int) -> Params:
    """The client's copy after a round; of a client without one, what it would begin as."""
    saved = self._copies.saved(client, round)
    return self._trainer.personal(shared, client, round) if saved is None else saved

  def train_cohort(
    self,
    shared: Params,
    clients: Sequence[int],
    round: int,
    first_step: int | None = None,
    *,
    control: Params | None = None,
  ) -> dict[int, Update | Exception]:
    """Trains the copies, and the global params as `LocalTrainer.train_cohort` does."""
    begun = {client: attempt(self._begin, shared, client, round) for client in clients}
    able = [client for client, each in begun.items() if not isinstance(each, Exception)]
    copies = begun | self._copies.train_cohort({}, able, round, first_step, near=shared)
    failed = {client: each for client, each in copies.items() if isinstance(each, Exception)}
    able = [client for client in able if client not in failed]
    return failed | self._trainer.train_cohort(shared, able, round, first_step, control=control)

  def _begin(self, shared: Params, client: int, round: int) -> None:
    """Sets the copy that a client begins with."""
    if self._copies.saved(client, round - 1) is None:
      self._copies.set_state(client, round - 1, self.personal(shared, client, round - 1))
