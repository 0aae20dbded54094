"""What a study's tables show of a run."""

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


CIDER = Column("CIDEr", "of the global prompter on the common test split", "test", "cider")
OWN = Column(
  "CIDEr, own",
  "every test example answered by its own client's personal prompter",
  "test_personal",
  "cider",
)
MEGABYTES = Column(
  "MB up", "sent by all clients in all rounds, in 10⁶ bytes", "test", "bytes_up", 2, 1e-6
)
MAIN = (
  CIDER,
  Column("BLEU-4", "the same texts, by their 4-grams", "test", "bleu4"),
  Column("VQA", "share of right answers of the global prompter", "test", "vqa_accuracy"),
  OWN,
  Column("VQA, own", "the same, of questions", "test_personal", "vqa_accuracy"),
  Column("CIDEr, sample", "of the global prompter on a common sample", "test_common", "cider"),
  Column(
    "own on it",
    "CIDEr of personal prompters on the same sample, mean over clients",
    "test_personal_common",
    "cider",
  ),
  MEGABYTES,
)
MORE = (
  Column("blind", "CIDEr of the global prompter, shown no image", "test_blind", "cider"),
  Column("VQA, blind", "its right answers, shown no image", "test_blind", "vqa_accuracy"),
  Column("mean fusion", "CIDEr with fusion weights as their mean", "test_mean_fusion", "cider"),
  Column("changed", "share of texts that are then others", "test_mean_fusion", "changed"),
  Column(
    "newcomers",
    "CIDEr of the global prompter at sites that took no part",
    "newcomer_global",
    "cider",
  ),
  Column("ε", "spent by the last round, at `privacy.delta`", "test", "epsilon", 2),
  Column("before", "CIDEr of their personal prompters, untrained", "newcomer_before", "cider"),
  Column("after", "and after a round of training", "newcomer_after", "cider"),
)  # one by one, where some run has it
