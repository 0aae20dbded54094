"""The default experiment of a soak: real models and data, and as little work as possible.

It has all state that a failure could lose: local prompts, residuals, and the server's momentum.
"""

from afspl_jax.config.experiment import Data, Eval, Experiment, Fed, Optim, Prompter

SITES = 4


def get_config() -> Experiment:
  """Returns the experiment; the soak sets `fed.rounds`."""
  return Experiment(
    data=Data(partition="iid", num_clients=SITES, target_length=12),
    prompter=Prompter(tokens=4, pool=3, k_max=2),
    optim=Optim(batch_size=4, local_steps=2),
    fed=Fed(
      clients_per_round=SITES,
      cohort=1,  # clients of a network train alone, and so must those of the replay
      strategy="fedavgm",
      deadline=30.0,
      wait=90.0,  # the server does not stand still until a site that was killed is back
    ),
    eval=Eval(
      every=20,
      val_examples=8,
      test_examples=8,
      common_examples=8,
      batch_size=8,
      max_tokens=6,
    ),
  )
