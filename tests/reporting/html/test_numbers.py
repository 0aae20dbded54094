"""The numbers in charts and tables."""

import pytest

from afspl_jax.reporting.html import charts, clients, curves, joining, prompts
from afspl_jax.reporting.html.caveats import run_caveats
from afspl_jax.reporting.html.files import read_run, read_runs
from afspl_jax.reporting.html.tables import format_duration
from afspl_jax.reporting.text_table import format_bytes
from afspl_jax.storage.run_lines import read_lines
from tests.reporting.html.made_run import made_run, put


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return read_run(made_run(tmp_path_factory.mktemp("made") / "run"))


def test_a_curve_has_the_bytes_and_seconds_of_each_point(run):
  points = curves.curve_points(run, "val", "cider")
  assert [(p.round, p.megabytes, p.seconds) for p in points] == [
    (0, 0, 0),
    (2, 1.0, 4.0),
    (4, 2.0, 8.0),
  ]
  assert [p.value for p in points] == [0.1, 0.6, 1.1]
  assert [p.round for p in curves.curve_points(run, "train", "loss")] == [1, 2, 3, 4]


def test_thinning_keeps_the_ends_and_spreads_the_rest():
  assert curves.thin_out(range(5), 9) == [0, 1, 2, 3, 4]
  assert curves.thin_out(range(101), 5) == [0, 25, 50, 75, 100]


def test_every_client_has_its_outcomes(run):
  who = {client.name: client for client in clients.summarise_clients(run)}
  assert len(who) == 10
  sixth = who["site 0006"]  # rejected in round 1
  assert (sixth.used, sixth.missed, sixth.bytes_up, sixth.loss) == (3, 1, 3000, 0.25)
  assert sixth.held == {"train": 9, "validation": 1, "test": 2}
  assert sixth.scores["personal_cider"] == pytest.approx(1 + 6 / 9)
  assert who["site 0003"].last == "round 4: rejected: site: expected a finite number; got nan"
  assert [row[:2] for row in clients.failures_table(run).rows] == [
    ["4", "site 0003"],
    ["3", "site 0004"],
    ["2", "site 0005"],
    ["1", "site 0006"],
  ]


def test_late_replies_are_not_counted_twice():
  line = {"status": "late: discarded in round 3"}
  assert clients.update_outcome(line) == clients.LATE
  assert clients.update_outcome({"status": "timeout: no reply within 9 s"}) == clients.MISSED


def test_a_late_update_counts_as_not_used_everywhere(tmp_path):
  path = made_run(tmp_path / "run", clients=2, rounds=2)  # in which all are used
  lines = read_lines(path / "clients.jsonl")
  lost = lines[1] | {"num_examples": None, "loss": None}
  lines[1] = lost | {"status": "timeout: no reply within 9 s", "bytes_up": 0}
  put(path / "clients.jsonl", [*lines, lost | {"status": "late: discarded in round 2"}])
  run = read_run(path)
  assert any(text.startswith("1 updates of 1 clients were not used") for text in run_caveats(run))
  table = clients.failures_table(run)
  assert table.caption.startswith("1 updates")
  assert table.rows == [["1", "site 0001", "timeout: no reply within 9 s"]]
  svg = clients.client_charts(run)[0].svg
  assert "3 used, 1 not used in 2 rounds" in svg and ">late<" not in svg
  assert "late: discarded in round 2" in clients.clients_table(run).rows[1][-1]


def test_the_last_bar_is_the_mean_of_its_rounds(tmp_path, monkeypatch):
  drawn, bars = [], charts.bar_spec
  monkeypatch.setattr(charts, "bar_spec", lambda rows, *to: drawn.append(rows) or bars(rows, *to))
  run = read_run(made_run(tmp_path / "run", clients=3, rounds=51))
  caption = clients.client_charts(run)[0].caption
  assert caption.endswith("A bar is the mean of 2 rounds, the last bar of 1.")
  (rows,) = drawn
  whole = {}
  for row in rows:
    whole[row["x"], row["x2"]] = whole.get((row["x"], row["x2"]), 0) + row["y"]
  assert set(whole.values()) == {3}
  assert list(whole)[-2:] == [(48.5, 50.5), (50.5, 51.5)]


@pytest.mark.parametrize("number", [10, 40])
def test_what_sites_gain_is_shown_from_the_most_to_the_least(tmp_path, monkeypatch, number):
  drawn, ranked = [], charts.ranked_spec
  monkeypatch.setattr(charts, "ranked_spec", lambda *a: drawn.append(a) or ranked(*a))
  run = read_run(made_run(tmp_path / "run", clients=number, rounds=1, compared=True))
  (chart,) = joining.joining_charts(run)
  ((rows, _, names, series),) = drawn
  assert series == ["trained alone", "personalised model", "all data in one place"]
  assert names[0] == f"site {number - 1:04d}" and names[-1] == "site 0000"
  assert len(names) == min(number, 30) and len(rows) == 3 * len(names)
  last = [(row["x"], row["series"]) for row in rows if row["name"] == "site 0000"]
  assert last == list(zip((1.125, 1.0, 2.0), series, strict=True))
  most = 1.0 + (number - 1) / 9 - 1.125
  alt = (
    f"{number - 2} of {number} sites gain; from {most:+.3g} at {names[0]} to -0.125 at site 0000"
  )
  assert f'aria-label="CIDEr: alone and joined. {alt}"' in chart.svg
  assert ("Shows 30 of 40 sites." in chart.caption) == (number == 40)


def test_runs_without_baselines_have_no_chart_and_no_column_of_them(run):
  assert joining.joining_charts(run) == []
  assert not [name for name in clients.clients_table(run).head if "alone" in name]


def test_the_partition_shows_labels_and_all_others(run):
  _, table = clients.partition_chart(run)
  assert table.head[:2] == ["Client", "site cat"] and table.head[-1] != "all others"
  assert table.rows[0][:2] == ["site 0000", "5"] and sum(map(int, table.rows[3][1:])) == 9


def test_fusion_weights_are_shown_by_task_and_round(run):
  table = prompts.fusion_table(run)
  assert [row[0] for row in table.rows] == ["0", "2", "4"]
  row = dict(zip(table.head, table.rows[0], strict=True))
  # Of examples 0 to 5, 0 and 4 are questions.
  assert row["visual, questions"] == "0.298" and row["visual, captions"] == "0.297"
  assert [chart.title for chart in prompts.fusion_charts(run)] == [
    "Fusion weights, captions",
    "Fusion weights, questions",
  ]


def test_prompts_are_in_the_order_of_their_numbers(tmp_path):
  run = read_run(made_run(tmp_path / "run"))
  for line in run.of("train"):
    line["pool_usage_10"] = line.pop("pool_usage_7")
  head = prompts.pool_table(run).head
  assert head == ["Round", *(f"Prompt {i}" for i in (0, 1, 2, 3, 4, 5, 6, 10))]


def test_run_names_are_unique_ends_of_their_paths(tmp_path):
  paths = [tmp_path / "a" / "x" / "run", tmp_path / "b" / "x" / "run", tmp_path / "other"]
  for path in paths:
    made_run(path, clients=2, rounds=1)
  assert [run.name for run in read_runs(paths)] == ["a/x/run", "b/x/run", "other"]


def test_readable_numbers():
  assert [format_bytes(n) for n in (12, 1500, 2.5e6, 3e9)] == [
    "12 bytes",
    "1.5 kB",
    "2.5 MB",
    "3.0 GB",
  ]
  assert [format_duration(s) for s in (3.21, 75, 7260)] == ["3.2 s", "1 min 15 s", "2 h 1 min"]


def test_a_private_run_shows_its_epsilon_and_its_limits(tmp_path, run):
  path = made_run(tmp_path / "run", clients=4, rounds=3, **{"privacy.delta": 0.001})
  lines = read_lines(path / "metrics.jsonl")
  for line in lines:
    if line["split"] == "train":
      del line["loss"]
      line["epsilon"] = 1.25 * line["round"]
  put(path / "metrics.jsonl", lines)
  private = read_run(path)
  spent = {measure.title: measure.charts for measure in curves.curve_groups([private])}
  assert "3.75" in spent["Privacy spent"][0].svg
  assert any("ε = 3.75" in text and "δ = 0.001" in text for text in run_caveats(private))
  assert "Privacy spent" not in {measure.title for measure in curves.curve_groups([run])}
  assert not any("ε" in text for text in run_caveats(run))
  both = {measure.title for measure in curves.curve_groups([run, private])}
  assert "Privacy spent" in both


@pytest.mark.parametrize("name", ["pool_usage_x", "pool_usage_", f"pool_usage_{'1' * 5000}"])
def test_other_metrics_are_not_shown_as_pool_prompts(tmp_path, name):
  path = made_run(tmp_path / "run", clients=3, rounds=2)
  lines = read_lines(path / "metrics.jsonl")
  before = prompts.pool_table(read_run(path))
  put(path / "metrics.jsonl", [line | {name: 0.5} for line in lines])
  assert prompts.pool_table(read_run(path)) == before
  second = [line | {"pool_usage_9": 0.5} if line["round"] == 2 else line for line in lines]
  put(path / "metrics.jsonl", second)
  assert len(prompts.pool_table(read_run(path)).rows) < len(before.rows)
