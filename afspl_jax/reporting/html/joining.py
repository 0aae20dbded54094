"""Charts of what each site gains by joining the federation, for runs with `fed.compare`."""

from afspl_jax.evaluation.scores import ANSWERS
from afspl_jax.reporting.html import charts
from afspl_jax.reporting.html.charts import AxisTitles, Chart
from afspl_jax.reporting.html.clients import NAMED
from afspl_jax.reporting.html.curves import TITLES, thin_out
from afspl_jax.reporting.html.files import RunFiles

_SERIES = {
  "alone": "trained alone",
  "personal": "personalised model",
  "pooled": "all data in one place",
}


def joining_charts(run: RunFiles) -> list[Chart]:
  """A chart for each score that sites have by the model that they trained alone."""
  found = (_chart(run, score) for score in ("cider", *ANSWERS))
  return [chart for chart in found if chart is not None]


def _chart(run: RunFiles, score: str) -> Chart | None:
  alone, joined = f"alone_{score}", f"personal_{score}"
  sites = [line for line in run.sites if None not in (line.get(alone), line.get(joined))]
  if not sites:
    return None
  gains = {line["client"]: line[joined] - line[alone] for line in sites}
  sites.sort(key=lambda line: -gains[line["client"]])
  shown = thin_out(sites, NAMED)
  rows = [
    {"name": line["client"], "x": line[f"{model}_{score}"], "series": title}
    for line in shown
    for model, title in _SERIES.items()
    if line.get(f"{model}_{score}") is not None
  ]
  series = [title for title in _SERIES.values() if any(row["series"] == title for row in rows)]
  caption = "On the test examples of each site, from the site that gains most to the one that gains"
  caption += " least by joining: the personalised model and the one that it trained alone"
  caption += ", and one model of all sites' data." if len(series) > 2 else "."
  if len(shown) < len(sites):
    caption += f" Shows {len(shown)} of {len(sites)} sites."
  better = sum(gain > 0 for gain in gains.values())
  most, least = sites[0]["client"], sites[-1]["client"]
  alt = f"{better} of {len(sites)} sites gain; from {gains[most]:+.3g} at {most}"
  alt += f" to {gains[least]:+.3g} at {least}"
  names = [line["client"] for line in shown]
  spec = charts.ranked_spec(rows, AxisTitles(TITLES[score], ""), names, series)
  return charts.draw_chart(f"{TITLES[score]}: alone and joined", caption, alt, spec)
