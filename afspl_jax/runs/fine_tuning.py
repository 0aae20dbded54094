"""Local fine-tuning: after the last round, each site trains a copy of the global model further.

FedAvg with fine-tuning is a strong baseline of personalisation (Wang et al. 2019, "Federated
evaluation of on-device personalization"; Cheng et al. 2021, "Fine-tuning is fine in federated
learning"). All leaves are trained, and the learning rates go down their schedule once more. A site
keeps the global model or that after one of the `fed.finetune` local rounds, whichever has the
smallest loss on its own part of validation (early stopping); without such a part, the last.

Nothing is sent. Chosen models are on disk: a run that is started again repeats at most one cohort,
and ends with the same bits.
"""

from collections.abc import Callable, Sequence

from tqdm import tqdm

from afspl_jax.federation.client.local_trainer import LocalTrainer
from afspl_jax.runs.prepare import Setup
from afspl_jax.runs.trained.finished_run import chosen_number
from afspl_jax.training.optimizer import warmup_steps
from afspl_jax.types import Params


def fine_tune(setup: Setup, shared: Params, progress: Callable[..., tqdm] = tqdm) -> None:
  """Fine-tunes the models of the sites that took part, if the config has `fed.finetune`.

  Args:
    setup: the setup of a run.
    shared: the server's leaves after the last round (NumPy).
    progress: makes the progress bar.

  Raises:
    FloatingPointError: no step of a local round of some site had a finite loss and gradient.
  """
  if setup.tuner is None:
    return
  fed, tuner = setup.config.fed, setup.tuner
  chosen = chosen_number(setup.config)
  taking_part = range(len(setup.clients["train"]) - fed.newcomers)
  cohorts = [taking_part[i : i + fed.cohort] for i in range(0, len(taking_part), fed.cohort)]
  # A cohort is repeated whole, since one of another size would differ in the last bits.
  left = [each for each in cohorts if any(tuner.newest_round(client) != chosen for client in each)]
  for cohort in progress(left, desc="fine-tuning", unit="cohort"):
    for client, params in _tuned(setup, tuner, shared, cohort).items():
      tuner.set_state(client, chosen, params)


def personal_params(setup: Setup, shared: Params, client: int, round: int) -> Params:
  """The personalised model of a client after a round; after the last one, the fine-tuned one.

  Args:
    setup: the setup of a run whose clients are here.
    shared: the server's leaves after the round (NumPy).
    client: its index. A newcomer has no fine-tuned model.
    round: the round.
  """
  assert setup.trainer is not None, "clients are here"
  tuner, chosen = setup.tuner, chosen_number(setup.config)
  if tuner and round == setup.config.fed.rounds and tuner.newest_round(client) == chosen:
    return tuner.personal({}, client, chosen)
  return setup.trainer.personal(shared, client, round)


def _tuned(
  setup: Setup, tuner: LocalTrainer, shared: Params, cohort: Sequence[int]
) -> dict[int, Params]:
  """The chosen model of each client of a cohort."""
  config, trainer = setup.config, setup.trainer
  assert trainer is not None, "clients are here"
  before = config.fed.rounds
  best = {client: trainer.personal(shared, client, before) for client in cohort}
  losses = {client: _loss(setup, client, params) for client, params in best.items()}
  for client, params in best.items():
    tuner.set_state(client, before, params)
  for number in range(1, config.fed.finetune + 1):
    round = before + number
    results = tuner.train_cohort({}, cohort, round, _first_step(setup, number - 1))
    for client, result in results.items():
      if isinstance(result, Exception):
        raise result
      params = tuner.personal({}, client, round)
      loss = _loss(setup, client, params)
      if loss <= losses[client]:
        best[client], losses[client] = params, loss
  return best


def _loss(setup: Setup, client: int, params: Params) -> float:
  """On the client's part of validation; 0 if it has none."""
  rows = setup.clients["validation"][sorted(setup.clients["train"])[client]].tolist()
  if not rows:
    return 0.0
  return setup.evaluator.loss(params, setup.splits["validation"], rows, personalised=True)


def _first_step(setup: Setup, done: int) -> int:
  """Where the schedule of the learning rates stands: it is passed from its peak to its end."""
  optim, fed = setup.config.optim, setup.config.fed
  peak, end = warmup_steps(optim, fed.rounds), max(fed.rounds, 1) * optim.local_steps
  return peak + (end - peak) * done // fed.finetune
