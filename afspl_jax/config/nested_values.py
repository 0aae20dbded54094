"""Plain nested values, as JSON stores them: compared and hashed."""

import hashlib
import json
from typing import Any


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
  """Names the leaves in which two nested dicts differ, as `field: old -> new`."""
  lines = []
  for key in sorted(old.keys() | new.keys()):
    a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f"{prefix}{key}.")
    elif a != b:
      lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
  return lines


def digest(value: Any) -> str:
  """A short hash of any JSON value; equal values have equal digests."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
