"""The numbers of a run that a study's tables show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
  """One number of a run."""

  name: str
  meaning: str
  split: str  # of the line in metrics.jsonl
  key: str
  decimals: int = 3
  scale: float = 1.0


CIDER = Column("CIDEr", "of the global model on the common test split", "test", "cider")
PERSONALISED = Column(
  "CIDEr, personalised",
  "each test example by the personalised model of its client",
  "test_personal",
  "cider",
)
MEGABYTES = Column(
  "MB up", "sent by all clients in all rounds, in 10⁶ bytes", "test", "bytes_up", 2, 1e-6
)
MAIN = (
  CIDER,
  Column("BLEU-4", "4-gram overlap of the same texts", "test", "bleu4"),
  Column("VQA", "fraction of correct answers of the global model", "test", "vqa_accuracy"),
  PERSONALISED,
  Column(
    "VQA, personalised",
    "fraction of correct answers of personalised models",
    "test_personal",
    "vqa_accuracy",
  ),
  Column("CIDEr, sample", "of the global model on a common sample", "test_common", "cider"),
  Column(
    "CIDEr, sample, personalised",
    "of personalised models on the same sample, mean over clients",
    "test_personal_common",
    "cider",
  ),
  MEGABYTES,
)
MORE = (
  Column("CIDEr, no image", "of the global model without the image", "test_blind", "cider"),
  Column(
    "VQA, no image",
    "fraction of correct answers without the image",
    "test_blind",
    "vqa_accuracy",
  ),
  Column(
    "CIDEr, mean fusion",
    "with the mean fusion weights for every sample",
    "test_mean_fusion",
    "cider",
  ),
  Column("changed texts", "fraction of texts that then differ", "test_mean_fusion", "changed"),
  Column(
    "newcomers, global",
    "CIDEr of the global model at sites that took no part",
    "newcomer_global",
    "cider",
  ),
  Column("ε", "privacy spent by the last round, at `privacy.delta`", "test", "epsilon", 2),
  Column(
    "newcomers, before", "CIDEr of their personalised models, untrained", "newcomer_before", "cider"
  ),
  Column("newcomers, after", "and after one round of training", "newcomer_after", "cider"),
)  # each one is shown if some run has it
