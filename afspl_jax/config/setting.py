"""What is known of one setting: its default, meaning, unit and legal values, on its own field."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from afspl_jax.config.registry import Registry
from afspl_jax.errors import SettingError

T = TypeVar("T")

# Server and sites compare a setting: always, or only where they split one data set.
Agreed = Literal["", "always", "split"]

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True, kw_only=True)
class Setting:
  """A field's metadata; the bounds hold for every number of a tuple."""

  meaning: str
  unit: str = ""
  ge: int | float | None = None
  gt: int | float | None = None
  le: int | float | None = None
  lt: int | float | None = None
  choices: tuple[str, ...] = ()  # a choice such as "pooled:N" allows every text after the colon
  plugins: Registry | None = None  # names and checks the values; third parties may add some
  agreed: Agreed = ""

  def allows(self, value: Any) -> bool:
    """Whether the value, of the field's type, is legal."""
    if isinstance(value, tuple):
      return all(map(self.allows, value))
    if isinstance(value, str):
      forms = {choice.partition(":")[:2] for choice in self.choices}
      return not self.choices or value.partition(":")[:2] in forms
    return (
      math.isfinite(value)
      and (self.ge is None or value >= self.ge)
      and (self.gt is None or value > self.gt)
      and (self.le is None or value <= self.le)
      and (self.lt is None or value < self.lt)
    )

  def legal(self, default: Any) -> str:
    """The legal values as a phrase; "" where every value of the default's type is legal."""
    if self.choices:
      return f"one of {', '.join(self.choices)}"
    bounds = [f"{text} {getattr(self, key)}" for key, text in _BOUNDS.items() if self._has(key)]
    numbers = {float: "a finite number", tuple: "finite numbers"}.get(type(default), "")
    return ", ".join(filter(None, (numbers, " and ".join(bounds))))

  def _has(self, bound: str) -> bool:
    return getattr(self, bound) is not None


def setting(default: T, meaning: str, unit: str = "", **rules: Any) -> T:
  """A dataclass field with what is known of it.

  Args:
    default: the field's default.
    meaning: one line for users.
    unit: of the value, such as "seconds".
    **rules: fields of `Setting`.
  """
  known = Setting(meaning=meaning, unit=unit, **rules)
  return dataclasses.field(default=default, metadata={"setting": known})


def group(kind: type[T], agreed: Agreed = "") -> T:
  """A dataclass field that holds a group of settings.

  Args:
    kind: the group's dataclass; the first line of its docstring says what it is.
    agreed: of all its settings.
  """
  metadata = {"setting": Setting(meaning=(kind.__doc__ or "").splitlines()[0], agreed=agreed)}
  return dataclasses.field(default_factory=kind, metadata=metadata)


def require(name: str, value: Any, holds: bool, expected: str) -> None:
  """Rejects a setting's value unless `holds`.

  Raises:
    SettingError: naming the field, what is expected, and the value.
  """
  if not holds:
    raise SettingError(f"{name}: expected {expected}; got {value!r}")
