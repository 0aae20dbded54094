"""Data sets as their users have them, small: annotation files and images in a folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from afspl_jax.config.experiment import Data
from afspl_jax.data.sources import open_sources
from afspl_jax.types import Example, Source
from tests.conftest import SHARED

SPLITS = ("train", "validation", "test")


def real(name: str) -> Path:
  """A folder of real data, or the test is skipped."""
  if not (SHARED / name).is_dir():
    pytest.skip(f"{SHARED / name} is absent: real data lies beside the checkout")
  return SHARED / name


def write_json(path: Path, content: Any) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))
  return path


def write_images(folder: Path, names: Iterable[str]) -> None:
  """Images that all differ, as far as 256 greys go."""
  for i, name in enumerate(names):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), i % 256).save(folder / name)


def opened(source: str, folder: Path, **settings) -> dict[str, Source]:
  """All splits."""
  return open_sources(Data(source=source, dir=str(folder), **settings), SPLITS)


def examples(sources: dict[str, Source]) -> list[Example]:
  """Those of all splits."""
  found = [source[i] for source in sources.values() for i in range(len(source))]
  for source in sources.values():
    assert isinstance(source, Source)
  return found


def images(sources: dict[str, Source]) -> list[str]:
  """The keys of all splits, each of which one split alone has."""
  keys = [key for source in sources.values() for key in source.images()]
  assert len(keys) == len(set(keys))
  return keys
