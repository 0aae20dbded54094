"""What charts and tables are made of."""

import pytest

from afspl_jax.reporting.html import charts, clients, curves, prompts
from afspl_jax.reporting.html.caveats import caveats
from afspl_jax.reporting.html.files import read, read_all
from afspl_jax.reporting.html.tables import duration
from afspl_jax.reporting.text_table import size
from afspl_jax.storage.run_lines import read_lines
from tests.reporting.html.made_run import made_run, put


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return read(made_run(tmp_path_factory.mktemp("made") / "run"))


def test_a_curve_knows_what_was_spent_by_each_point(run):
  points = curves.curve(run, "val", "cider")
  assert [(p.round, p.megabytes, p.seconds) for p in points] == [
    (0, 0, 0),
    (2, 1.0, 4.0),
    (4, 2.0, 8.0),
  ]
  assert [p.value for p in points] == [0.1, 0.6, 1.1]
  assert [p.round for p in curves.curve(run, "train", "loss")] == [1, 2, 3, 4]


def test_thinning_keeps_the_ends_and_spreads_the_rest():
  assert curves.thinned(range(5), 9) == [0, 1, 2, 3, 4]
  assert curves.thinned(range(101), 5) == [0, 25, 50, 75, 100]


def test_every_client_has_what_became_of_it(run):
  who = {client.name: client for client in clients.clients(run)}
  assert len(who) == 10
  sixth = who["site 0006"]  # refused in round 1
  assert (sixth.used, sixth.missed, sixth.bytes_up, sixth.loss) == (3, 1, 3000, 0.25)
  assert sixth.held == {"train": 9, "validation": 1, "test": 2}
  assert sixth.scores["personal_cider"] == pytest.approx(1 + 6 / 9)
  assert who["site 0003"].last == "round 4: rejected: site: expected a finite number; got nan"
  assert [row[:2] for row in clients.failures(run).rows] == [
    ["4", "site 0003"],
    ["3", "site 0004"],
    ["2", "site 0005"],
    ["1", "site 0006"],
  ]


def test_late_replies_are_not_counted_twice():
  line = {"status": "late: discarded in round 3"}
  assert clients.outcome(line) == clients.LATE
  assert clients.outcome({"status": "timeout: no reply within 9 s"}) == clients.MISSED


def test_an_update_that_came_late_is_one_that_was_not_used_everywhere(tmp_path):
  path = made_run(tmp_path / "run", clients=2, rounds=2)  # in which all are used
  lines = read_lines(path / "clients.jsonl")
  lost = lines[1] | {"num_examples": None, "loss": None}
  lines[1] = lost | {"status": "timeout: no reply within 9 s", "bytes_up": 0}
  put(path / "clients.jsonl", [*lines, lost | {"status": "late: discarded in round 2"}])
  run = read(path)
  assert any(text.startswith("1 updates of 1 clients were not used") for text in caveats(run))
  table = clients.failures(run)
  assert table.caption.startswith("1 updates")
  assert table.rows == [["1", "site 0001", "timeout: no reply within 9 s"]]
  svg = clients.pictures(run)[0].svg
  assert "3 used, 1 not used in 2 rounds" in svg and ">late<" not in svg
  assert "late: discarded in round 2" in clients.table(run).rows[1][-1]


def test_the_last_bar_is_the_mean_of_the_rounds_that_are_left(tmp_path, monkeypatch):
  drawn, bars = [], charts.bars
  monkeypatch.setattr(charts, "bars", lambda rows, *to: drawn.append(rows) or bars(rows, *to))
  run = read(made_run(tmp_path / "run", clients=3, rounds=51))
  caption = clients.pictures(run)[0].caption
  assert caption.endswith("A bar is the mean of 2 rounds, the last one of 1.")
  (rows,) = drawn
  whole = {}
  for row in rows:
    whole[row["x"], row["x2"]] = whole.get((row["x"], row["x2"]), 0) + row["y"]
  assert set(whole.values()) == {3}
  assert list(whole)[-2:] == [(48.5, 50.5), (50.5, 51.5)]


def test_the_partition_tells_labels_and_all_others_apart(run):
  _, table = clients.partition(run)
  assert table.head[:2] == ["Client", "site cat"] and table.head[-1] != "all others"
  assert table.rows[0][:2] == ["site 0000", "5"] and sum(map(int, table.rows[3][1:])) == 9


def test_fusion_is_told_by_task_and_round(run):
  table = prompts.fusion_table(run)
  assert [row[0] for row in table.rows] == ["0", "2", "4"]
  row = dict(zip(table.head, table.rows[0], strict=True))
  # Of examples 0 to 5, 0 and 4 are questions.
  assert row["visual, questions"] == "0.298" and row["visual, captions"] == "0.297"
  assert [chart.title for chart in prompts.fusion(run)] == [
    "Fusion weights, captions",
    "Fusion weights, questions",
  ]


def test_prompts_are_in_the_order_of_their_numbers(tmp_path):
  run = read(made_run(tmp_path / "run"))
  for line in run.of("train"):
    line["pool_usage_10"] = line.pop("pool_usage_7")
  head = prompts.pool_table(run).head
  assert head == ["Round", *(f"Prompt {i}" for i in (0, 1, 2, 3, 4, 5, 6, 10))]


def test_runs_are_told_apart_by_as_much_of_their_path_as_it_takes(tmp_path):
  paths = [tmp_path / "a" / "x" / "run", tmp_path / "b" / "x" / "run", tmp_path / "other"]
  for path in paths:
    made_run(path, clients=2, rounds=1)
  assert [run.name for run in read_all(paths)] == ["a/x/run", "b/x/run", "other"]


def test_numbers_as_people_read_them():
  assert [size(n) for n in (12, 1500, 2.5e6, 3e9)] == ["12 bytes", "1.5 kB", "2.5 MB", "3.0 GB"]
  assert [duration(s) for s in (3.21, 75, 7260)] == ["3.2 s", "1 min 15 s", "2 h 1 min"]


def test_a_private_run_shows_what_was_spent_and_what_that_does_not_cover(tmp_path, run):
  path = made_run(tmp_path / "run", clients=4, rounds=3, **{"privacy.delta": 0.001})
  lines = read_lines(path / "metrics.jsonl")
  for line in lines:
    if line["split"] == "train":
      del line["loss"]
      line["epsilon"] = 1.25 * line["round"]
  put(path / "metrics.jsonl", lines)
  private = read(path)
  spent = {measure.title: measure.charts for measure in curves.measures([private])}
  assert "3.75" in spent["Privacy spent"][0].svg
  assert any("ε = 3.75" in text and "δ = 0.001" in text for text in caveats(private))
  assert "Privacy spent" not in {measure.title for measure in curves.measures([run])}
  assert not any("ε" in text for text in caveats(run))
  both = {measure.title for measure in curves.measures([run, private])}
  assert "Privacy spent" in both


@pytest.mark.parametrize("name", ["pool_usage_x", "pool_usage_", f"pool_usage_{'1' * 5000}"])
def test_what_is_no_prompt_of_the_pool_is_not_drawn(tmp_path, name):
  path = made_run(tmp_path / "run", clients=3, rounds=2)
  lines = read_lines(path / "metrics.jsonl")
  before = prompts.pool_table(read(path))
  put(path / "metrics.jsonl", [line | {name: 0.5} for line in lines])
  assert prompts.pool_table(read(path)) == before
  second = [line | {"pool_usage_9": 0.5} if line["round"] == 2 else line for line in lines]
  put(path / "metrics.jsonl", second)
  assert len(prompts.pool_table(read(path)).rows) < len(before.rows)
