"""What an experiment's settings must fulfil, checked before anything is loaded."""

import math

from afspl_jax.config.experiment import Experiment, choice, expect
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import decoding_settings
from afspl_jax.federation import strategies
from afspl_jax.federation.client import malicious
from afspl_jax.federation.contracts import POISSON
from afspl_jax.federation.privacy import budget, dp_sgd_batches
from afspl_jax.federation.protocol import uplink
from afspl_jax.federation.secure import terms as secure
from afspl_jax.federation.server import selection

MAX_EXAMPLES = 2**29  # as a weight it leaves the mean of equal float32 params what they are


def check(config: Experiment) -> None:
  """Refuses values that no later layer would name as well.

  Raises:
    UserError: naming the field, what it may be, and what it is.
  """
  choice("backbone.dtype", config.backbone.dtype, ("float32", "bfloat16"))
  for name, value in {
    "fed.clients_per_round": config.fed.clients_per_round,
    "fed.cohort": config.fed.cohort,
    "fed.min_replies": config.fed.min_replies,
    "fed.max_examples": config.fed.max_examples,
    "eval.every": config.eval.every,
    "eval.batch_size": config.eval.batch_size,
    "eval.max_tokens": config.eval.max_tokens,
    "optim.batch_size": config.optim.batch_size,
    "optim.local_steps": config.optim.local_steps,
    "prompter.tokens": config.prompter.tokens,
    "prompter.key_dim": config.prompter.key_dim,
    "prompter.fusion_hidden": config.prompter.fusion_hidden,
    "prompter.mapper_hidden": config.prompter.mapper_hidden,
    "prompter.patch_pool": config.prompter.patch_pool,
    "data.num_clients": config.data.num_clients,
    "data.categories": config.data.categories,
    "data.instruction_length": config.data.instruction_length,
    "data.target_length": config.data.target_length,
  }.items():
    expect(name, value, value >= 1, "at least 1")
  for name, number in {
    "prompter.temperature": config.prompter.temperature,
    "prompter.pool_mass": config.prompter.pool_mass,
    "fed.deadline": config.fed.deadline,
    "data.dirichlet_alpha": config.data.dirichlet_alpha,
    "optim.prompt_lr": config.optim.prompt_lr,
    "optim.local_lr": config.optim.local_lr,
    "optim.key_lr": config.optim.key_lr,
    "optim.fusion_lr": config.optim.fusion_lr,
    "optim.mapper_lr": config.optim.mapper_lr,
    "optim.clip_norm": config.optim.clip_norm,
    "optim.contrast_temperature": config.optim.contrast_temperature,
    "attack.scale": config.attack.scale,
  }.items():
    expect(name, number, math.isfinite(number) and number > 0, "a finite number above 0")
  ratio = config.data.capacity_ratio
  expect("data.capacity_ratio", ratio, 1 <= ratio < math.inf, "a finite number from 1")
  for name, share in {
    "prompter.local_drop": config.prompter.local_drop,
    "eval.ema": config.eval.ema,
    "attack.share": config.attack.share,
  }.items():
    expect(name, share, 0 <= share < 1, "a number from 0 to below 1")
  taking_part = config.data.num_clients - config.fed.newcomers
  expect(
    "fed.clients_per_round",
    config.fed.clients_per_round,
    config.fed.clients_per_round <= taking_part,
    f"at most data.num_clients without fed.newcomers, {taking_part}",
  )
  for name, number in {
    "seed": config.seed,
    "data.max_bad": config.data.max_bad,
    "fed.rounds": config.fed.rounds,
    "fed.newcomers": config.fed.newcomers,
    "fed.retries": config.fed.retries,
    "fed.wait": config.fed.wait,
    "fed.max_update_norm": config.fed.max_update_norm,
    "optim.balance": config.optim.balance,
    "optim.contrast": config.optim.contrast,
    "optim.contrast_warmup": config.optim.contrast_warmup,
    "optim.weight_decay": config.optim.weight_decay,
  }.items():
    expect(name, number, math.isfinite(number) and number >= 0, "0 or more")
  expect(
    "fed.max_examples",
    config.fed.max_examples,
    config.fed.max_examples <= MAX_EXAMPLES,
    f"at most {MAX_EXAMPLES}, whose products with float32 are exact",
  )
  choice("fed.share", config.fed.share, ("all", "none"))
  choice("fed.selection", config.fed.selection, (*selection.METHODS, POISSON))
  strategy = strategies.get(config.fed.strategy, taking_part)
  expect(
    "fed.strategy",
    config.fed.strategy,
    config.fed.share == "all" or config.fed.strategy == "fedavg",
    "fedavg with fed.share=none, where there is nothing to average",
  )
  uplink.check(config.uplink)
  budget.check(config)
  malicious.check(config.attack, taking_part)
  expect(
    "attack.kind",
    config.attack.kind,
    config.attack.kind == "none" or not config.secure.aggregation,
    "none with secure.aggregation, where nobody but a site itself bounds what it sends, as a"
    " hostile one would not",
  )
  dp_sgd_batches.check(config, strategy)
  secure.check(config)
  decoding_settings(config.eval)
  expect(
    "uplink.select",
    config.uplink.select,
    config.uplink.select == "dense" or not isinstance(strategy, strategies.Controlled),
    f"dense with fed.strategy={config.fed.strategy}, whose controls count every gradient: one"
    " whose update is sent later would count twice",
  )


def check_networked(config: Experiment, who: str) -> None:
  """Refuses what is for studies in one process.

  Args:
    config: of a federation over a network.
    who: asks for it: this host's role, or Flower's command.

  Raises:
    UserError: naming the fields, and what they may be.
  """
  fed, attack = config.fed, config.attack
  if fed.newcomers or fed.share == "none" or attack.kind != "none":
    raise UserError(
      f"{who}: expected fed.newcomers=0, fed.share=all and attack.kind=none, the others"
      f" being for studies in one process; got {fed.newcomers}, {fed.share} and {attack.kind}"
    )
