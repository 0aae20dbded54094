"""The report file: valid, without network access, safe with any text, small, and correct."""

import itertools
import json
import re
import sys

import html5lib
import pytest

from afspl_jax import cli
from afspl_jax.reporting.html.files import read_run, read_runs
from afspl_jax.reporting.html.page import render_page
from tests.reporting.html.made_run import MALICIOUS, made_run, put

XHTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"


def parsed(html):
  """The page's elements; an error in it is one of the test."""
  return html5lib.HTMLParser(strict=True).parse(html)


def texts(tree, name):
  return [" ".join("".join(element.itertext()).split()) for element in tree.iter(f"{XHTML}{name}")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return made_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def page(run):
  return render_page([read_run(run)], images=False)


def test_the_command_writes_a_valid_file_beside_the_run(run, capsys):
  assert cli.main(["report", "--no-images", str(run)]) == 0
  assert capsys.readouterr().out == f"report: {run}/report.html\n"
  tree = parsed((run / "report.html").read_text())
  assert texts(tree, "h1") == ["run"]
  assert texts(tree, "h2") == [
    "Figures",
    "Curves",
    "Clients",
    "Prompts",
    "Captions",
    "Settings",
  ]


def test_the_page_loads_nothing_and_has_no_script(page):
  tree = parsed(page)
  for element in tree.iter():
    for name, value in element.attrib.items():
      if name.rpartition("}")[2] in ("src", "href", "srcset", "action", "data", "poster"):
        assert value.startswith(("#", "data:image/")), (element.tag, name, value)
      assert not name.startswith("on"), (element.tag, name)
  assert not list(tree.iter(f"{XHTML}script")) and not list(tree.iter(f"{XHTML}link"))
  assert not re.search(r"url\(|@import", page)
  policy = next(e for e in tree.iter(f"{XHTML}meta") if "http-equiv" in e.attrib)
  assert policy.attrib["content"].startswith("default-src 'none'")


def test_ids_are_used_once_and_links_lead_to_them(page):
  tree = parsed(page)
  ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
  assert len(ids) == len(set(ids))
  links = [element.attrib["href"].removeprefix("#") for element in tree.iter(f"{XHTML}a")]
  assert links and set(links) <= set(ids)


def test_every_chart_has_a_description_and_every_table_a_name(page):
  tree = parsed(page)
  charts = list(tree.iter(f"{SVG}svg"))
  assert len(charts) > 15
  for chart in charts:
    assert chart.attrib["role"] == "img" and len(chart.attrib["aria-label"]) > 20
  captions = [element for element in tree.iter(f"{XHTML}figcaption")]
  assert len(captions) == len(charts) and all("".join(c.itertext()).strip() for c in captions)
  tables = list(tree.iter(f"{XHTML}table"))
  assert all(table.find(f"{XHTML}caption") is not None for table in tables)


def test_headings_do_not_skip_a_level(run, page, tmp_path):
  beside = made_run(tmp_path / "beside")
  for html in (page, render_page(read_runs([run, beside]), images=False)):
    levels = [int(n) for n in re.findall(r"<h([1-6])", html)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_headline_figures_and_caveats(page):
  tree = parsed(page)
  figures = dict(zip(texts(tree, "dt"), texts(tree, "dd")[::2], strict=True))
  assert figures == {
    "CIDEr": "1.500",
    "BLEU-4": "0.150",
    "Exact match": "0.500",
    "Bytes": "2.0 MB",
    "Time": "14.0 s",
    "Updates": "36 used",
  }
  sentences = " ".join(texts(tree, "li"))
  assert "saw only generated images of shapes" in sentences and "compare methods" in sentences
  assert "CIDEr is 0.250 without the image, and 1.500 with it" in sentences
  assert "4 updates of 4 clients were not used" in sentences


@pytest.mark.parametrize(
  "fields, sentence",
  [
    ({"data.source": "coco_captions"}, "texts about photographs are poor"),
    ({"backbone.clip": "/models/clip", "backbone.t5": "/models/t5"}, None),
    ({"eval.test_examples": 100}, "at most 100 examples"),
  ],
)
def test_the_page_shows_caveats(tmp_path, fields, sentence):
  html = render_page([read_run(made_run(tmp_path / "run", **fields))], images=False)
  assert sentence in html if sentence else "generated images" not in html


def test_scores_of_earlier_versions_are_shown_by_the_names_that_they_have(tmp_path):
  path = made_run(tmp_path / "run")
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  put(path / "metrics.jsonl", [line | {"vqa_accuracy": 0.25} for line in lines])
  site = {"client": "site 0000", "examples": 4, "global_vqa_accuracy": 0.5}
  put(path / "sites.jsonl", [site | {"personal_vqa_accuracy": 0.75}])
  tree = parsed(render_page([read_run(path)], images=False))
  figures = dict(zip(texts(tree, "dt"), texts(tree, "dd")[::2], strict=True))
  assert (figures["Exact match"], figures["VQA accuracy"]) == ("0.500", "0.250")
  head = texts(tree, "th")
  assert "VQA accuracy, personalised" in head and "Exact match, personalised" not in head


def test_a_run_with_baselines_says_what_sites_gain(tmp_path):
  html = render_page([read_run(made_run(tmp_path / "run", compared=True))], images=False)
  tree = parsed(html)
  gain = "By joining, sites gain 0.50 CIDEr on average (alone 2.00, personalised 2.50;"
  (said,) = [text for text in texts(tree, "p") if gain in text]
  assert "8 of 10 sites gain; all data in one place 3.00) and neither gain nor lose exact" in said
  assert {"CIDEr, trained alone", "CIDEr, all data in one place"} <= set(texts(tree, "th"))
  assert "test split, one model trained on all clients' data" in texts(tree, "th")


def test_clients_that_trained_alone_have_no_global_score(tmp_path):
  fields = {"fed.share": "none", "eval.test_examples": 100, "eval.val_examples": 7}
  path = made_run(tmp_path / "run", **fields)
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  left = [line for line in lines if line["split"] not in ("test", "test_blind")]
  put(path / "metrics.jsonl", left)
  tree = parsed(render_page([read_run(path)], images=False))
  values, notes = texts(tree, "dd")[::2], texts(tree, "dd")[1::2]
  assert list(zip(texts(tree, "dt"), values, notes, strict=True))[:3] == [
    ("CIDEr", "–", "personalised 2.500"),
    ("BLEU-4", "–", "personalised 0.250"),
    ("Exact match", "–", "personalised 0.500"),
  ]
  sentences = " ".join(texts(tree, "li"))
  assert "Every client trained alone" in sentences and "at most 100 examples" in sentences


def test_a_run_resumed_elsewhere_names_every_machine(tmp_path):
  path = made_run(tmp_path / "run")
  config = json.loads((path / "config.json").read_text())
  config["places"].append({"devices": "4 x tpu"})
  (path / "config.json").write_text(json.dumps(config))
  tree = parsed(render_page([read_run(path)], images=False))
  rows = dict(rows_of(tree, "Versions, devices and hashes"))
  assert rows["devices"] == "1 x cpu, then 4 x tpu"


def test_a_run_with_malicious_sites_is_marked(tmp_path):
  attack = {"attack.kind": "scale", "attack.share": 0.2}
  file = made_run(tmp_path / "run", **attack) / "config.json"
  whole = json.loads(file.read_text())
  whole["facts"]["hostile"] = ["site 0003", "site 0007"]
  file.write_text(json.dumps(whole))
  assert "2 sites were malicious on purpose (scale)" in render_page(
    [read_run(file.parent)], images=False
  )


def test_a_stopped_run_is_marked_and_shown(tmp_path):
  path = made_run(tmp_path / "run", finished=False, rounds=3)
  with open(path / "metrics.jsonl", "a") as file:
    file.write('{"round": 4, "spl')  # killed while it wrote
  html = render_page([read_run(path)], images=False)
  assert "<strong>stopped</strong>, round 3 of 3" in html
  assert (
    "The run is not finished: its scores are those on the validation split after round 3" in html
  )
  assert "round_0003.jsonl" in html


def test_a_run_without_partition_sites_and_predictions_has_a_page(tmp_path):
  path = made_run(tmp_path / "run")
  for file in [path / "partition.json", path / "sites.jsonl", *(path / "predictions").iterdir()]:
    file.unlink()
  headings = texts(parsed(render_page([read_run(path)], images=False)), "h2")
  assert headings == ["Figures", "Curves", "Clients", "Prompts", "Settings"]


def test_a_malicious_text_is_escaped(tmp_path):
  path = made_run(tmp_path / "run", name=MALICIOUS)
  html = render_page([read_run(path)], images=False)
  tree = parsed(html)
  assert not list(tree.iter(f"{XHTML}script")) and not list(tree.iter(f"{XHTML}img"))
  assert not any(name.startswith("on") for element in tree.iter() for name in element.attrib)
  assert any(MALICIOUS in text for text in texts(tree, "td"))


def test_a_thousand_clients_have_a_page_of_bounded_size(tmp_path):
  path = made_run(tmp_path / "run", clients=1000, rounds=12)
  html = render_page([read_run(path)], images=False)
  assert 100_000 < len(html) < 1_500_000
  tree = parsed(html)
  assert sum("site 0" in text for text in texts(tree, "th")) >= 1000  # each is in the table
  assert max(len(list(chart.iter())) for chart in tree.iter(f"{SVG}svg")) < 4000


def test_several_runs_beside_each_other(tmp_path):
  a = made_run(tmp_path / "a" / "run", seed=1)
  b = made_run(tmp_path / "b" / "run", seed=2, rounds=6)
  out = tmp_path / "both.html"
  assert cli.main(["report", "--no-images", str(a), str(b), f"--out={out}"]) == 0
  html = out.read_text()
  tree = parsed(html)
  assert texts(tree, "h1") == ["a/run, b/run"]
  rows = {cells[0]: cells[1:] for cells in rows_of(tree, "Settings that are not the default")}
  assert rows["seed"] == ["0", "1", "2", "yes"] and rows["fed.rounds"] == ["48", "4", "6", "yes"]
  assert "The runs have different lengths: 4 to 6 rounds." in html
  scores = rows_of(tree, "Last scores")
  assert [row[1] for row in scores if row[0] == "test split, global model"] == ["a/run", "b/run"]
  ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
  assert len(ids) == len(set(ids))


def rows_of(tree, caption):
  for table in tree.iter(f"{XHTML}table"):
    if "".join(table.find(f"{XHTML}caption").itertext()) == caption:
      return [["".join(cell.itertext()) for cell in row] for row in table.find(f"{XHTML}tbody")]
  raise AssertionError(f"no table {caption}")


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda path: path, "expected a run folder with config.json; got none"),
    (lambda path: damage(path, "config.json", "{"), "config.json: expected a file of a run; got"),
    (
      lambda path: damage(path, "config.json", '{"config": {"seed": 1}}'),
      "config.json: expected a run's config; got one without data.source, data.partition",
    ),
    (lambda path: damage(path, "metrics.jsonl", "{\n"), "metrics.jsonl:1: expected a JSON object"),
    (lambda path: damage(path, "metrics.jsonl", "3\n"), "metrics.jsonl:1: expected a JSON object"),
  ],
)
def test_a_folder_that_is_not_a_run_is_one_line(tmp_path, capsys, make, message):
  assert cli.main(["report", str(make(tmp_path / "run"))]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def damage(path, name, text):
  made_run(path)
  (path / name).write_text(text)
  return path


def test_without_the_extra_the_command_names_what_to_install(run, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "afspl_jax.reporting.html.page", None)
  monkeypatch.delitem(sys.modules, "afspl_jax.reporting.html.page")
  monkeypatch.setitem(sys.modules, "jinja2", None)
  assert cli.main(["report", "--no-images", str(run)]) == 2
  assert "jinja2" in (error := capsys.readouterr().err) and "'afspl-jax[report]'" in error


def test_infinite_values_leave_gaps(tmp_path):
  path = made_run(tmp_path / "run")
  lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  put(path / "metrics.jsonl", [line | {"loss": None} for line in lines])
  assert "Loss by round" not in render_page([read_run(path)], images=False)
