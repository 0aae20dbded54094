"""Inputs that were valid: with other values, other structure, or other bytes.

All that is random is drawn from a `random.Random`, which hypothesis and atheris can both drive.
"""

import copy
import json
import struct
from random import Random
from typing import Any

Choices = list[tuple[Any, Any]]  # containers with one of their keys

_RAW = {  # what no Python value becomes, as JSON spells it
  "nan": "NaN",
  "infinity": "-Infinity",
  "too large": "1e999",
  "many digits": "9" * 5000,
  "digits": "9" * 400,
  "half a character": '"\\ud800"',
  "twice": '{"a": 1, "a": [2], "image": 3, "image": "../x"}',
  **{f"lists {n}": "[" * n + "]" * n for n in (60, 400, 930, 970, 990, 100_000)},
  **{f"objects {n}": '{"a":' * n + "1" + "}" * n for n in (60, 900, 960, 100_000)},
}
_VALUES: list[Any] = [
  *(None, True, False, 0, 1, -1, 2, 7, 255, 1.5, -0.0, 1e308, 5e-324),
  *(2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63), 10**12, 10**30),
  *("", " ", "a", "0", "nan", "1e5", "train", "../x.png", "..", ".", "/", "/etc/passwd", "~/x"),
  *(
    "a/../../x",
    "C:\\x.png",
    "\\\\host\\x",
    "a\0b",
    "linked/0.png",
    "0.png",
    "\x1b[31mred",
    "\u202e",
  ),
  *(
    "x" * 300,
    "x/" * 3000,
    "ß" * 200,
    "\u0660\u0661",
    "²",
    "٣" * 5000,
    "<script>",
    "{{7*7}}",
    "%s%n",
  ),
  *([], {}, [[]], [None], [""], ["a", 1], {"": None}, {"a": {"b": []}}, [0] * 300, ["a"] * 300),
]


def mutate(data: bytes, rng: Random) -> bytes:
  """The data with one change or a few."""
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    for kind in (_safetensors, _npy, _json, _lines, _bytes):
      if kind is _bytes or rng.random() < 0.85:
        changed = kind(data, rng)
        if changed is not None:
          data = changed
          break
  return data


def _bytes(data: bytes, rng: Random) -> bytes:
  """Flips, cuts, repeats, moves or replaces bytes, or writes a number over some."""
  size = len(data)
  at = rng.randrange(size + 1)
  until = min(size, at + rng.choice((1, 2, 4, 8, 64, 1000)))
  match rng.randrange(8):
    case 0:
      return data[:at]
    case 1:
      return data[:at] + data[until:]
    case 2:
      return data[:until] + data[at:]
    case 3:
      return data[:at] + bytes(rng.randrange(256) for _ in range(until - at)) + data[until:]
    case 4:
      number = rng.choice((0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63))
      form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
      part = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
      return data[:at] + part + data[at + len(part) :]
    case 5:
      other = rng.randrange(size + 1)
      return data[:at] + data[other : other + until - at] + data[until:]
    case 6:
      return data[:at] + rng.choice((b"\0", b"\xff\xfe", b"\n", b"\xed\xa0\x80", b'"')) + data[at:]
    case _:
      if not size:
        return b"\0"
      at = min(at, size - 1)
      return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _json(data: bytes, rng: Random) -> bytes | None:
  raw: list[str] = []
  try:
    text = json.dumps(_tree(json.loads(data), rng, raw))
  except (ValueError, RecursionError):  # no JSON, or what was made so before
    return None
  for i, part in enumerate(raw):
    text = text.replace(f'"@raw{i}@"', part)
  return text.encode()


def _tree(tree: Any, rng: Random, raw: list[str]) -> Any:
  places = _places(tree)
  if not places or rng.random() < 0.05:
    return _hostile(rng, raw)
  holder, key = rng.choice(places)
  match rng.randrange(10):
    case 0:
      del holder[key]
    case 1 if isinstance(holder, dict):
      name = rng.choice(("", "x" * 300, "../x", "a\0b", "\x1b[31m", "__metadata__", "__class__"))
      holder[name] = holder.pop(key)
    case 2 if isinstance(holder, list):
      holder.insert(key, holder[key])
    case 3:
      other, there = rng.choice(places)
      holder[key] = json.loads(json.dumps(other[there]))
    case 4:
      holder[key] = [holder[key]]
    case 5 if isinstance(holder[key], str):
      holder[key] = _words(holder[key], rng, raw)
    case 6 if isinstance(holder[key], int | float):
      holder[key] = rng.choice(
        (-holder[key], holder[key] + 1, holder[key] * 10**9, str(holder[key]))
      )
    case _:
      holder[key] = _hostile(rng, raw)
  return tree


def _words(text: str, rng: Random, raw: list[str]) -> str:
  """A changed text; one that is JSON itself, as JSON."""
  if text[:1] in ("{", "[") and (changed := _json(text.encode(), rng)) is not None:
    return changed.decode()
  at = rng.randrange(len(text) + 1)
  part = rng.choice(("../", "/", "\0", "\n", " ", "\u202e", "x" * 300, "9" * 30, "%2e", "é"))
  return text[:at] + part + text[at + rng.randrange(3) :]


def _hostile(rng: Random, raw: list[str]) -> Any:
  if rng.random() < 0.3:
    raw.append(rng.choice(list(_RAW.values())))
    return f"@raw{len(raw) - 1}@"
  return copy.deepcopy(rng.choice(_VALUES))


def _places(tree: Any) -> Choices:
  """Every value but the outermost, as where it is; at most some thousands of them."""
  out: Choices = []
  level = [tree] if isinstance(tree, dict | list) else []
  while level and len(out) < 5000:
    below = []
    for holder in level:
      keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 200))
      out += [(holder, key) for key in keys]
      below += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    level = below
  return out


def _lines(data: bytes, rng: Random) -> bytes | None:
  lines = data.split(b"\n")
  if len(lines) < 2:
    return None
  at = rng.randrange(len(lines) - 1)
  match rng.randrange(6):
    case 0:
      lines.insert(at, lines[at])
    case 1:
      lines.insert(at, b"")
    case 2:
      lines.insert(at, rng.choice(list(_RAW.values())).encode())
    case _:
      changed = _json(lines[at], rng) or _bytes(lines[at], rng)
      lines[at] = changed
  return b"\n".join(lines)


def _safetensors(data: bytes, rng: Random) -> bytes | None:
  """Another header, its length put right more often than not."""
  size = int.from_bytes(data[:8], "little")
  if data[8:9] != b"{" or size > len(data) - 8:
    return None
  header = _json(data[8 : 8 + size], rng)
  if header is None:
    return None
  said = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**40, 2**63 - 1))
  return said.to_bytes(8, "little") + header + data[8 + size :]


def _npy(data: bytes, rng: Random) -> bytes | None:
  if data[:6] != b"\x93NUMPY":
    return None
  size = int.from_bytes(data[8:10], "little")
  header, rest = data[10 : 10 + size], data[10 + size :]
  descr = rng.choice((b"'<f4'", b"'|O'", b"'<f8'", b"'|V4'", b"[('a', '<f4')]", b"'<U999999'"))
  shape = rng.choice((b"(1000000000000,)", b"(-1,)", b"()", b"(99999999999999999999,)", b"(2, 3)"))
  order = rng.choice((b"False", b"True", b"0"))
  made = b"{'descr': %s, 'fortran_order': %s, 'shape': %s, }" % (descr, order, shape)
  choice = rng.randrange(3)
  header = (made, _bytes(header, rng), b"(" * 5000 + header)[choice]
  if rng.random() < 0.8:
    header = header[:60000].ljust(size)
    return data[:8] + len(header).to_bytes(2, "little") + header + rest
  return data[:10] + header + rest
