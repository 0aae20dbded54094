"""Forms of values from outside, with which they are compared before anything is made of them.

A form is `int` or `float`, a number that can be reckoned with, the second also a whole one; `str`,
`bool`, `dict`, `list` or None; `object`, anything; a tuple of forms, of which one must fit; a list
with the form of its parts; or a dict of forms by name, where "name?" may be absent and "*" is of
all other names.
"""

import re
from typing import Any

Form = Any

_HALF = re.compile("[\ud800-\udfff]")  # of a character: no file can be written with it
_LARGEST = 1e200  # sums and means of many such numbers are finite


def misfit(value: Any, form: Form, where: str = "") -> str:
  """What of a value has another form, and where; "" if nothing has."""
  if isinstance(form, tuple):
    return "" if any(not misfit(value, each) for each in form) else _said(value, where)
  if isinstance(form, dict):
    return _misfit_in(value, form, where) if isinstance(value, dict) else _said(value, where)
  if isinstance(form, list):
    if not isinstance(value, list):
      return _said(value, where)
    return next((fault for part in value if (fault := misfit(part, form[0], f"{where}[]"))), "")
  if form is str:
    fits = isinstance(value, str) and not _HALF.search(value)
  elif form in (int, float):
    fits = type(value) in (int, form) and abs(value) <= _LARGEST  # and so is a number
  else:
    fits = value is None if form is None else isinstance(value, form)
  return "" if fits else _said(value, where)


def _misfit_in(value: dict[str, Any], form: dict[str, Form], where: str) -> str:
  names = {name.removesuffix("?"): each for name, each in form.items()}
  for name in form:
    if name != "*" and not name.endswith("?") and name not in value:
      return f"no {where}{'.' if where else ''}{name}"
  for name, part in value.items():
    inner = names.get(name, form.get("*"))
    if (name in names or "*" in form) and (
      fault := misfit(part, inner, f"{where}{'.' if where else ''}{name[:60]}")
    ):
      return fault
  return ""


def _said(value: Any, where: str) -> str:
  return f"{where or 'it'} is {value!r:.60}"
