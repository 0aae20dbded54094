"""Ten sites that differ like hospitals: in camera, content, style of texts and mix of tasks."""

from dataclasses import dataclass

import numpy as np

from afspl_jax.data.shapes import language
from afspl_jax.data.shapes.language import QuestionAnswer, Style
from afspl_jax.data.shapes.scene import COLOURS, SHAPES, Look, Scene, sample_scene


@dataclass(frozen=True)
class Site:
  """A site: how its images look, and how its texts are written."""

  name: str
  look: Look
  style: Style
  colours: str = ""  # colours seen four times as often as others
  shapes: str = ""  # shapes seen four times as often as others
  counts: tuple[float, float, float] = (0.2, 0.4, 0.4)  # shares of 1, 2 and 3 things
  questions: float = 0.25  # share of images that come with questions, not captions


SITES = (
  Site("alder", Look(120.0, (0.0, 0.0, 0.0), 8.0), Style("sentence"), questions=0.2),
  Site(
    "birch",
    Look(80.0, (-10.0, 0.0, 18.0), 6.0),
    Style("note", colours=1, sizes=1),
    colours="red blue",
    questions=0.1,
  ),
  Site(
    "cedar",
    Look(165.0, (12.0, 6.0, -12.0), 4.0),
    Style("report", shapes=1, places=1),
    counts=(0.1, 0.3, 0.6),
    questions=0.1,
  ),
  Site(
    "dogwood",
    Look(100.0, (18.0, -8.0, -8.0), 10.0),
    Style("place_first", sizes=2),
    shapes="star ring",
  ),
  Site(
    "elm",
    Look(150.0, (-16.0, 12.0, 0.0), 5.0),
    Style("tally", places=2),
    counts=(0.0, 0.3, 0.7),
    questions=0.4,
  ),
  Site(
    "fir",
    Look(90.0, (0.0, 16.0, -14.0), 11.0),
    Style("sentence", colours=1, shapes=1, places=1, reverse=True),
    colours="green yellow",
  ),
  Site(
    "ginkgo",
    Look(180.0, (0.0, 0.0, 10.0), 9.0),
    Style("note", places=2, name_sizes=False),
    shapes="square cross",
    counts=(0.4, 0.4, 0.2),
    questions=0.6,
  ),
  Site(
    "hazel",
    Look(75.0, (14.0, 14.0, 0.0), 4.0),
    Style("relation", sizes=1),
    counts=(0.1, 0.5, 0.4),
    questions=0.2,
  ),
  Site(
    "ivy",
    Look(135.0, (16.0, 0.0, 18.0), 7.0),
    Style("report", colours=1, sizes=2, places=2),
    colours="purple pink orange",
    questions=0.5,
  ),
  Site(
    "juniper",
    Look(110.0, (-18.0, -4.0, -10.0), 12.0),
    Style("tally", shapes=1, sizes=1, places=1, reverse=True),
    shapes="circle triangle",
    questions=0.3,
  ),
)


@dataclass(frozen=True)
class Record:
  """The scene of one image with its texts: captions or questions."""

  scene: Scene
  captions: tuple[str, ...]
  questions: tuple[QuestionAnswer, ...]


def sample_record(site: Site, split: str, seen: set[str], rng: np.random.Generator) -> Record:
  """Draws a scene of `split` that is not in `seen`, and adds it there."""
  while True:
    scene = sample_scene(
      rng, _weights(COLOURS, site.colours), _weights(SHAPES, site.shapes), site.counts
    )
    if scene.split == split and scene.identity not in seen:
      seen.add(scene.identity)
      break
  if rng.random() < site.questions:
    return Record(scene, (), tuple(language.questions(scene, site.style, rng)[:2]))
  return Record(scene, tuple(language.captions(scene, site.style, rng)), ())


def _weights(names, favoured: str) -> np.ndarray:
  weights = np.array([4.0 if name in favoured.split() else 1.0 for name in names])
  return weights / weights.sum()
