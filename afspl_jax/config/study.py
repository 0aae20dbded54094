"""A study: every method in every setting with every seed, as data.

A study is a file in `configs/` whose `get_study()` returns a `Study`; `afspl ablate` runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from afspl_jax.config.experiment import Experiment, to_dict
from afspl_jax.config.fields import changed
from afspl_jax.config.nested_values import digest
from afspl_jax.errors import UserError

Overrides = Mapping[str, Any]  # values by dotted field name: {"prompter.local": False}


@dataclass(frozen=True)
class Study:
  """What is compared; a variant's overrides win over its setting's."""

  base: Experiment
  settings: Mapping[str, Overrides]  # how clients differ: one table each
  variants: Mapping[str, Overrides]  # methods: one row each
  seeds: tuple[int, ...]
  reference: str = "dense FedAvg"  # the variant that bytes are relative to
  full: str = "full AFSPL"  # the variant that scores are compared with, seed by seed
  alone: str = ""  # the variant without a federation: what others gain over it is shown by size
  # Of settings and of variants.
  fewer_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

  def __post_init__(self) -> None:
    for role in ("reference", "full", "alone"):
      if getattr(self, role) not in (*self.variants, *([""] if role == "alone" else [])):
        raise UserError(
          f"study: expected {role} to be one of {', '.join(self.variants)};"
          f" got {getattr(self, role)!r}"
        )
    if not self.settings or not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise UserError(
        "study: expected at least one setting, and at least one seed, each once; got settings"
        f" {list(self.settings)} and seeds {self.seeds}"
      )
    for setting, seeds in self.fewer_seeds.items():
      known = [*self.settings, *self.variants]
      if setting not in known or not seeds or not set(seeds) <= set(self.seeds):
        raise UserError(
          f"study: expected fewer_seeds of {known} out of {self.seeds}; got {setting!r} with"
          f" {seeds}"
        )

  def seeds_of(self, setting: str, variant: str = "") -> tuple[int, ...]:
    """The seeds of a variant in a setting; by default of a variant that has all."""
    few = [self.fewer_seeds.get(name, self.seeds) for name in (setting, variant)]
    return tuple(seed for seed in self.seeds if all(seed in seeds for seeds in few))


@dataclass(frozen=True)
class Cell:
  """One method in one setting with one seed."""

  setting: str
  variant: str
  seed: int
  config: Experiment

  @property
  def run(self) -> str:
    """Names the run that this cell is read from; cells of equal configs share one."""
    return digest(to_dict(self.config))

  def __str__(self) -> str:
    return f"{self.variant}, {self.setting}, seed {self.seed}"


def cells(study: Study) -> list[Cell]:
  """All cells, every variant with the first seed first: a study cut short still has its tables.

  Raises:
    UserError: an override of a field that is not known, or of the wrong type, or of the seed.
  """
  out = []
  for seed in study.seeds:
    for setting, common in study.settings.items():
      for variant, own in study.variants.items():
        if seed not in study.seeds_of(setting, variant):
          continue
        overrides = {**common, **own}
        try:
          if "seed" in overrides:
            raise UserError("seed: expected in the study's seeds; got an override. Remove it")
          config = changed(study.base, {**overrides, "seed": seed})
        except UserError as error:
          raise UserError(f"study: {variant!r} in {setting!r}: {error}") from error
        out.append(Cell(setting, variant, seed, config))
  return out
