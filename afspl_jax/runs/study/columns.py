"""The numbers of a run that a study's tables show."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Column:
  """One number of a run."""

  name: str
  meaning: str
  split: str  # of the line in metrics.jsonl
  key: str
  decimals: int = 3
  scale: float = 1.0
  always: bool = False  # also shown if no run has it
  otherwise: "Column | None" = None  # taken of a run that lacks this number


CIDER = Column(
  "CIDEr", "of the global model on the common test split", "test", "cider", always=True
)
PERSONALISED = Column(
  "CIDEr, personalised",
  "every test example is scored with the personalised model of its own client",
  "test_personal",
  "cider",
  always=True,
)
MEGABYTES = Column(
  "MB up",
  "sent by all clients in all rounds, in 10⁶ bytes",
  "test",
  "bytes_up",
  2,
  1e-6,
  always=True,
)
_EXACT_MATCH = Column(
  "exact match",
  "of the global model: share of the questions with one answer whose text equals it after"
  " normalisation",
  "test",
  "exact_match",
)
_VQA = Column(
  "VQA accuracy",
  "of the global model: VQAv2's accuracy over the questions with several answers",
  "test",
  "vqa_accuracy",
)


def _answers(name: str, meaning: str, split: str) -> list[Column]:
  """The two scores of answers on another line."""
  found = (_EXACT_MATCH, _VQA)
  return [replace(c, name=f"{c.name}, {name}", meaning=meaning, split=split) for c in found]


# What a site uses: the personalised model, or the global one where a method has no other. Both are
# scored on the same examples.
SITE_CIDER = replace(PERSONALISED, name="CIDEr", otherwise=CIDER)
SITE_ANSWERS = tuple(
  replace(personalised, name=column.name, otherwise=column)
  for column, personalised in zip(
    (_VQA, _EXACT_MATCH), _answers("", "", "test_personal")[::-1], strict=True
  )
)

MAIN = (
  CIDER,
  Column("BLEU-4", "of the same texts", "test", "bleu4", always=True),
  _EXACT_MATCH,
  _VQA,
  PERSONALISED,
  *_answers("personalised", "the same by the personalised models", "test_personal"),
  Column(
    "CIDEr, sample", "of the global model on a common sample", "test_common", "cider", always=True
  ),
  Column(
    "personalised, sample",
    "CIDEr of the personalised models on the same sample, mean over clients",
    "test_personal_common",
    "cider",
    always=True,
  ),
  MEGABYTES,
)
MORE = (
  Column("blind", "CIDEr of the global model without the image", "test_blind", "cider"),
  *_answers("blind", "the same without the image", "test_blind"),
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
)
