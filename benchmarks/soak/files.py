"""Files that nobody needs after a run: scratch files, and names that no page of the docs has."""

import re
from collections.abc import Iterable
from pathlib import Path

# Paths below a soak's `hosts`, of all files that may be there after a run.
_SERVER_RUN = r"server/run/"
_SITE_RUN = r"[^/]+/run/"
_EXPECTED = [
  r"[^/]+\.log|tmp",
  r"server/keys/(ca|server)\.(crt|key|pem)",
  r"server/keys/sites/[^/]+\.pub",
  r"[^/]+/keys/(ca\.crt|[^/]+\.(key|pub))",
  _SERVER_RUN + r"(config\.json|lock|metrics\.jsonl|clients\.jsonl|sites\.jsonl)",
  _SERVER_RUN + r"checkpoints/\d+/.+",
  _SERVER_RUN + r"predictions/(round_\d+|test\w*)\.jsonl",
  _SERVER_RUN + r"tensorboard/events\.out\.tfevents\.[^/]+",
  _SERVER_RUN + r"superlink/(log|secret|superlink\.db(-shm|-wal)?|flwr/source)",
  _SITE_RUN + r"(config\.json|lock|wire\.jsonl)",
  _SITE_RUN + r"clients/[^/]+/round_\d+\.safetensors",
  _SITE_RUN + r"supernode/[^/]+/(log|secret|config\.toml|flwr/source)",
]
_PATTERN = re.compile("|".join(f"(?:{each})" for each in _EXPECTED))


def unexpected(paths: Iterable[str]) -> list[str]:
  """The paths, below a soak's folder of hosts, that a run should not leave."""
  return sorted(path for path in paths if not _PATTERN.fullmatch(path))


def files_below(folder: Path) -> list[str]:
  """The paths of all files below a folder, relative to it, and of folders that are empty."""
  return [
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if not path.is_dir() or not any(path.iterdir())
  ]


def tracebacks(logs: Iterable[Path]) -> dict[str, list[str]]:
  """The last lines of the tracebacks in logs, by file."""
  out: dict[str, list[str]] = {}
  for log in logs:
    if not log.exists():
      continue
    lines = iter(log.read_text(errors="replace").splitlines())
    for line in lines:
      if line.startswith("Traceback (most recent call last)"):
        end = next((rest for rest in lines if rest and not rest[0].isspace()), "")
        out.setdefault(log.name, []).append(end[:300])
  return out
