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
  "every test example is scored with the personalised model of its own client",
  "test_personal",
  "cider",
)
MEGABYTES = Column(
  "MB up", "sent by all clients in all rounds, in 10⁶ bytes", "test", "bytes_up", 2, 1e-6
)
MAIN = (
  CIDER,
  Column("BLEU-4", "of the same texts", "test", "bleu4"),
  Column("VQA", "share of correct answers of the global model", "test", "vqa_accuracy"),
  PERSONALISED,
  Column("VQA, personalised", "the same for questions", "test_personal", "vqa_accuracy"),
  Column("CIDEr, sample", "of the global model on a common sample", "test_common", "cider"),
  Column(
    "personalised, sample",
    "CIDEr of the personalised models on the same sample, mean over clients",
    "test_personal_common",
    "cider",
  ),
  MEGABYTES,
)
MORE = (
  Column("blind", "CIDEr of the global model without the image", "test_blind", "cider"),
  Column("VQA, blind", "share of correct answers without the image", "test_blind", "vqa_accuracy"),
  Column(
    "mean fusion",
    "CIDEr with the fusion weights replaced by their mean",
    "test_mean_fusion",
    "cider",
  ),
  Column("changed", "share of texts that this changes", "test_mean_fusion", "changed"),
  Column(
    "new sites", "CIDEr of the global model at sites that took no part", "newcomer_global", "cider"
  ),
  Column("ε", "privacy spent by the last round, at `privacy.delta`", "test", "epsilon", 2),
  Column(
    "before",
    "CIDEr of their personalised models, before local training",
    "newcomer_before",
    "cider",
  ),
  Column("after", "the same after one round of local training", "newcomer_after", "cider"),
)  # each one is shown if some run has it
