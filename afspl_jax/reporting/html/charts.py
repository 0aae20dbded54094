"""Charts as SVG. Vega-Lite draws them when a page is made, so that the page needs no script.

Colours are variables of the page (`var(--...)`), so that charts follow its light or dark theme.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import vl_convert
from markupsafe import Markup

from afspl_jax.reporting.html.tables import Number

ChartRows = Sequence[dict[str, Any]]
Spec = dict[str, Any]

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
SERIES_COLOURS = [f"var(--c{i})" for i in range(1, 9)]
WIDTH, HEIGHT = 340, 220  # pixels; as wide as a phone, so that text is never shrunk
_FONT = "system-ui, sans-serif"
_CONFIG: Spec = {
  "background": None,
  "font": _FONT,
  "view": {"stroke": None},
  "axis": {
    "labelColor": "var(--ink)",
    "titleColor": "var(--soft)",
    "titleFontWeight": "normal",
    "labelFontSize": 11,
    "titleFontSize": 11,
    "gridColor": "var(--line)",
    "domainColor": "var(--line)",
    "tickColor": "var(--line)",
    "labelLimit": 110,
    "tickCount": 5,
  },
  "legend": {
    "labelColor": "var(--ink)",
    "labelFontSize": 11,
    "orient": "top",
    "title": None,
    "columnPadding": 24,  # the browser's font may be wider than the font used for measuring
    "labelLimit": 300,
  },
}


@dataclass(frozen=True)
class Chart:
  """A chart with its title and caption."""

  title: str
  caption: str  # a sentence on what the chart shows
  svg: Markup


class AxisTitles(NamedTuple):
  """Titles of a chart's axes."""

  x: str
  y: str


def draw_chart(title: str, caption: str, alt: str, spec: Spec) -> Chart:
  """Draws a chart.

  Args:
    title: the title.
    caption: a sentence on what the chart shows.
    alt: its content as text, for screen readers.
    spec: from one of the functions below.
  """
  _, _, inside = _svg(json.dumps(_sanitised(spec), sort_keys=True)).partition("<svg ")
  named = Markup('<svg role="img" aria-label="{}" ').format(f"{title}. {alt}")
  return Chart(title, caption, named + Markup(inside))


def line_spec(rows: ChartRows, axes: AxisTitles, series: Sequence[str]) -> Spec:
  """A line chart.

  Args:
    rows: `x`, `y` and `series`.
    axes: titles of the axes.
    series: names in the order of their colours.
  """
  many = len(rows) > 60 * len(series)
  encoding = {
    "x": _number("x", axes.x),
    # No axis title: it is the title of the chart, and would overlap long numbers.
    "y": _number("y", "", zero=False) | {"axis": {"format": ".3~g"}},
    "color": _colour("series", series),
  }
  mark = {"type": "line", "strokeWidth": 1.75, "aria": False}
  if not many:
    mark["point"] = {"size": 22, "aria": False}
  return _spec(rows, mark, encoding, height=HEIGHT + _legend(series))


def bar_spec(rows: ChartRows, axes: AxisTitles, series: Sequence[str]) -> Spec:
  """Stacked bars over whole numbers: `x` to `x2`, `y` and `series`."""
  encoding = {
    "x": _number("x", axes.x) | {"bin": "binned", "scale": {"zero": False, "nice": False}},
    "x2": {"field": "x2"},
    "y": _number("y", axes.y) | {"stack": "zero"},
    "color": _colour("series", series),
  }
  return _spec(rows, {"type": "bar", "aria": False}, encoding)


def ranked_spec(
  rows: ChartRows, axes: AxisTitles, names: Sequence[str], series: Sequence[str]
) -> Spec:
  """A ring for each name and series, in the order of `names`: `name`, `x` and `series`."""
  steps = max(1, len(series) - 1)
  sizes = [90 - 70 * i / steps for i in range(len(series))]
  encoding = {
    "y": _name("name", names, axes.y),
    "x": _number("x", axes.x),
    "color": _colour("series", series),
    # Different sizes, so that two equal values are both visible.
    "size": {
      "field": "series",
      "type": "nominal",
      "scale": {"domain": list(series), "range": sizes},
    },
  }
  mark = {"type": "point", "strokeWidth": 2, "opacity": 1, "aria": False}
  return _spec(rows, mark, encoding, height=_tall(names) + _legend(series))


def length_spec(rows: ChartRows, axes: AxisTitles, names: Sequence[str]) -> Spec:
  """A bar for each name: `name` and `x`."""
  encoding = {"y": _name("name", names, axes.y), "x": _number("x", axes.x)}
  mark = {"type": "bar", "color": SERIES_COLOURS[0], "aria": False}
  return _spec(rows, mark, encoding, height=_tall(names))


def scatter_spec(rows: ChartRows, axes: AxisTitles, top: Number) -> Spec:
  """Points `x`, `y`, and the diagonal of equal values up to `top`."""
  point = {"type": "point", "filled": True, "size": 18, "opacity": 0.5, "color": SERIES_COLOURS[0]}
  scale = {"domain": [0, top]}
  encoding = {"x": _number("x", axes.x), "y": _number("y", axes.y)}
  for channel in encoding.values():
    channel["scale"] = scale
  diagonal = {"type": "line", "color": "var(--soft)", "strokeDash": [3, 3], "aria": False}
  ends = {"values": [{"x": 0, "y": 0}, {"x": top, "y": top}]}
  layers = [
    {"data": ends, "mark": diagonal, "encoding": encoding},
    {"data": {"values": list(rows)}, "mark": point | {"aria": False}, "encoding": encoding},
  ]
  return _base(HEIGHT) | {"layer": layers}


def heat_spec(
  rows: ChartRows, axes: AxisTitles, across: Sequence[str], down: Sequence[str]
) -> Spec:
  """A heat map: `across`, `down`, and `value`, which sets the opacity."""
  top = max((row["value"] for row in rows), default=0) or 1
  turned = max(map(len, across), default=0) > 3
  encoding = {
    "x": _name("across", across, axes.x) | {"axis": {"labelAngle": -40 if turned else 0}},
    "y": _name("down", down, axes.y),
    "opacity": {
      "field": "value",
      "type": "quantitative",
      "scale": {"domain": [0, top], "range": [0.04, 1]},
      "legend": None,
    },
  }
  encoding["x"]["axis"]["labelOverlap"] = (
    False if turned else "greedy"
  )  # some rounds may have no label
  mark = {"type": "rect", "color": SERIES_COLOURS[0], "aria": False}
  return _spec(rows, mark, encoding, height=_tall(down) + (40 if turned else 0))


def describe_trend(points: Sequence[tuple[Number, Number]], unit: str) -> str:
  """A line as text: `0.049 at round 0, 1.02 at round 4, between 0.049 and 1.2`."""
  if not points:
    return "no values"
  (x0, y0), (x1, y1) = points[0], points[-1]
  (_, low), (_, high) = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
  return (
    f"{y0:.3g} at {unit} {x0:.4g}, {y1:.3g} at {unit} {x1:.4g}, between {low:.3g} and {high:.3g}"
  )


def _number(field: str, title: str, zero: bool = True) -> Spec:
  scale = {"zero": zero, "nice": True}
  return {"field": field, "type": "quantitative", "title": title or None, "scale": scale}


def _name(field: str, names: Sequence[str], title: str) -> Spec:
  return {"field": field, "type": "nominal", "title": title or None, "sort": list(names)}


def _colour(field: str, series: Sequence[str]) -> Spec:
  colours = [SERIES_COLOURS[i % len(SERIES_COLOURS)] for i in range(len(series))]
  encoding: Spec = {
    "field": field,
    "type": "nominal",
    "scale": {"domain": list(series), "range": colours},
  }
  return encoding | {"legend": {"columns": _columns(series)} if len(series) > 1 else None}


def _columns(series: Sequence[str]) -> int:
  """Columns of a legend that fit."""
  return max(1, (WIDTH - 60) // (7 * max(map(len, series), default=1) + 40))


def _tall(names: Sequence[str]) -> int:
  return max(120, 60 + 18 * len(names))


def _legend(series: Sequence[str]) -> int:
  """Height of a legend in pixels beyond its first row."""
  return 16 * (-(-len(series) // _columns(series)) - 1)


def _base(height: int) -> Spec:
  fit = {"type": "fit", "contains": "padding"}
  return {"width": WIDTH, "height": height, "autosize": fit, "padding": 4, "config": _CONFIG}


def _spec(rows: ChartRows, mark: Spec, encoding: Spec, height: int = HEIGHT) -> Spec:
  return _base(height) | {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def _sanitised(value: Any) -> Any:
  """The value without characters that SVG forbids: Vega's parser aborts the process on them."""
  if isinstance(value, str):
    return _FORBIDDEN.sub("\ufffd", value)
  if isinstance(value, dict):
    return {_sanitised(name): _sanitised(part) for name, part in value.items()}
  return [_sanitised(part) for part in value] if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=256)  # most charts of a page that is made again are unchanged
def _svg(spec: str) -> str:
  return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
