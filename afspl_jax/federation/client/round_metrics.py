"""What a client reports of its local steps in a round."""

import numpy as np

from afspl_jax.training.train_step import StepMetrics


def round_metrics(metrics: StepMetrics) -> dict[str, float]:
  """A client's metrics: means over its finite local steps."""
  finite = np.asarray(metrics.finite)
  usage = np.mean(metrics.usage[finite], axis=0)
  # The loss before any step, estimated on one batch: q-FedAvg weights a site by it.
  first_loss = {"first_loss": float(metrics.loss[0])} if finite[0] else {}
  return (
    {
      "loss": float(np.mean(metrics.loss[finite])),
      "balance": float(np.mean(metrics.balance[finite])),
      "contrast": float(np.mean(metrics.contrast[finite])),
      "grad_norm": float(np.mean(metrics.grad_norm[finite])),
      "prompts_chosen": float(usage.sum()),
      "nonfinite_steps": float(len(finite) - finite.sum()),
    }
    | first_loss
    | {f"pool_usage_{i}": float(share) for i, share in enumerate(usage)}
  )
