"""Scenes of coloured shapes on a 3 x 3 grid, and how they are rendered.

A scene's identity does not include its appearance (jitter, background, noise). The split of a scene
is a function of its identity, so splits and pretraining never have a scene in common.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

SIZE = 64  # pixels a side
COLOURS = {
  "red": (214, 40, 40),
  "green": (40, 160, 60),
  "blue": (40, 80, 220),
  "yellow": (240, 215, 40),
  "orange": (245, 135, 25),
  "purple": (130, 40, 170),
  "pink": (250, 140, 190),
  "cyan": (50, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
RADII = {"small": 5.0, "big": 9.0}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
# Ranges of a scene's hash, in percent. Pretraining has its own range, so the backbones never see a
# scene that a site trains on or is tested on.
SPLITS = {"pretrain": (0, 45), "train": (45, 80), "validation": (80, 85), "test": (85, 100)}


@dataclass(frozen=True, order=True)
class Thing:
  """One coloured shape; `row` and `column` count from the top left."""

  row: int
  column: int
  colour: str
  shape: str
  size: str


@dataclass(frozen=True)
class Scene:
  """One to three things in reading order, no two in one cell."""

  things: tuple[Thing, ...]

  @property
  def identity(self) -> str:
    """Equal for two scenes that no description can tell apart."""
    return ";".join(f"{t.size} {t.colour} {t.shape} {t.row}{t.column}" for t in self.things)

  @property
  def split(self) -> str:
    """The one split this scene may appear in."""
    bucket = int.from_bytes(hashlib.sha256(self.identity.encode()).digest()[:4], "big") % 100
    return next(name for name, (low, high) in SPLITS.items() if low <= bucket < high)


@dataclass(frozen=True)
class Look:
  """The camera of a site: background grey, tint and noise of every image (0-255 levels)."""

  grey: float
  tint: tuple[float, float, float]
  noise: float


def sample_scene(
  rng: np.random.Generator,
  colours: Float[np.ndarray, " colours"] | None = None,
  shapes: Float[np.ndarray, " shapes"] | None = None,
  counts: tuple[float, float, float] = (0.2, 0.4, 0.4),
) -> Scene:
  """Draws a scene; the arguments are probabilities over COLOURS, SHAPES and 1..3 things."""
  number = int(rng.choice(3, p=counts)) + 1
  cells = rng.choice(9, size=number, replace=False)
  names = list(COLOURS)
  things = [
    Thing(
      row=int(cell) // 3,
      column=int(cell) % 3,
      colour=names[rng.choice(len(names), p=colours)],
      shape=SHAPES[rng.choice(len(SHAPES), p=shapes)],
      size=("small", "big")[rng.integers(2)],
    )
    for cell in cells
  ]
  return Scene(tuple(sorted(things)))


def sample_look(rng: np.random.Generator) -> Look:
  """Draws a random look."""
  tint = rng.uniform(-22, 22, size=3)
  return Look(rng.uniform(70, 185), (tint[0], tint[1], tint[2]), rng.uniform(3, 12))


def render(scene: Scene, look: Look, rng: np.random.Generator) -> Image.Image:
  """Renders `scene`; `rng` gives jitter, sizes within a class, and noise.

  Returns:
    An RGB image of SIZE x SIZE, rendered at twice the size and averaged.
  """
  base = np.clip(look.grey + np.asarray(look.tint), 0, 255).astype(int)
  canvas = Image.new("RGB", (2 * SIZE, 2 * SIZE), tuple(int(x) for x in base))
  pen = ImageDraw.Draw(canvas)
  for thing in scene.things:
    x = (thing.column + 0.5) * SIZE / 3 + rng.uniform(-2, 2)
    y = (thing.row + 0.5) * SIZE / 3 + rng.uniform(-2, 2)
    radius = RADII[thing.size] * rng.uniform(0.92, 1.08)
    shade = tuple(int(np.clip(c + rng.uniform(-12, 12), 0, 255)) for c in COLOURS[thing.colour])
    _draw_shape(pen, thing.shape, 2 * x, 2 * y, 2 * radius, shade, tuple(int(b) for b in base))
  pixels = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)
  pixels += rng.normal(0, look.noise, size=pixels.shape)
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def cells_of(thing: Thing, grid: int) -> list[int]:
  """The cells of a grid x grid raster that the core of `thing` touches, in reading order."""
  step, reach = SIZE / grid, RADII[thing.size] * 0.8
  x, y = (thing.column + 0.5) * SIZE / 3, (thing.row + 0.5) * SIZE / 3
  return [
    row * grid + column
    for row in range(grid)
    for column in range(grid)
    if abs((column + 0.5) * step - x) < step / 2 + reach
    and abs((row + 0.5) * step - y) < step / 2 + reach
  ]


def _draw_shape(pen, shape, x, y, r, fill, hole):
  box = (x - r, y - r, x + r, y + r)
  if shape == "circle":
    pen.ellipse(box, fill=fill)
  elif shape == "ring":
    pen.ellipse(box, fill=fill)
    pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=hole)
  elif shape == "square":
    s = 0.87 * r
    pen.rectangle((x - s, y - s, x + s, y + s), fill=fill)
  elif shape == "cross":
    w = 0.33 * r
    pen.rectangle((x - w, y - r, x + w, y + r), fill=fill)
    pen.rectangle((x - r, y - w, x + r, y + w), fill=fill)
  elif shape == "triangle":
    pen.polygon(_polygon(x, y + 0.2 * r, 1.15 * r, 1.15 * r, 3), fill=fill)
  else:
    pen.polygon(_polygon(x, y, 1.1 * r, 0.45 * r, 10), fill=fill)


def _polygon(x, y, outer, inner, corners):
  """Corners at alternating radii, the first one at the top."""
  return [
    (
      x + (outer if i % 2 == 0 else inner) * math.sin(2 * math.pi * i / corners),
      y - (outer if i % 2 == 0 else inner) * math.cos(2 * math.pi * i / corners),
    )
    for i in range(corners)
  ]
