"""Prompters as files: what is in them, what is not, and files that others made."""

import dataclasses
import json
import shutil
import stat

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from afspl_jax.errors import UserError
from afspl_jax.runs.trained import prompter_file
from afspl_jax.runs.trained.trained_model import export, open_trained
from tests.recorded_run import rich_run

SITE = "elm"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return rich_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def of_site(run):
  return open_trained(run.path, site=SITE)


@pytest.fixture(scope="module")
def file(run, of_site, tmp_path_factory):
  """The global prompter."""
  path = tmp_path_factory.mktemp("exported") / "p.safetensors"
  export(of_site._replace(site=""), path)
  return path


@pytest.fixture(scope="module")
def folders(run):
  return {kind: getattr(run.config.backbone, kind) for kind in ("clip", "t5")}


def same(a, b):
  return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def metadata(path):
  with safe_open(path, framework="np") as opened:
    return json.loads(opened.metadata()["afspl_jax"])


def test_a_file_gives_back_the_prompter(run, file, folders, of_site):
  found = open_trained(file, folders=folders)
  assert same(found.shared, of_site.shared) and same(found.shared, run.checkpoint(3)["ema"])
  assert not any(leaf.any() for leaf in jax.tree.leaves(found.own))
  assert (found.round, found.site) == (3, "")
  assert found.scores["test"]["cider"] == run.line("test")["cider"]
  assert found.config.prompter == run.config.prompter


def test_a_file_says_which_backbones_it_needs_and_nothing_of_the_machine(run, file):
  said = metadata(file)
  assert said["backbones"] == run.setup.facts["backbones"] and said["format"] == 1
  assert said["config"]["backbone"]["clip"] == "clip" and said["config"]["data"]["dir"] == ""
  sites = list(run.setup.clients["train"])
  assert SITE in sites
  text = json.dumps(said, ensure_ascii=False)  # a path or a name as it is, whatever is in it
  for secret in (run.config.data.dir, run.config.backbone.t5, str(run.path), *sites):
    assert secret not in text and secret.encode() not in file.read_bytes()
  with pytest.raises(UserError, match=r"no folder .*clip"):
    open_trained(file)


def test_a_sites_prompt_is_in_a_file_only_when_asked_for(run, file, of_site, folders, tmp_path):
  prompt = of_site.own["local"]["prompt"]
  assert prompt.any() and prompt.tobytes() not in file.read_bytes()
  assert not any(name.startswith("local") for name in load_file(file))
  assert stat.S_IMODE(file.stat().st_mode) == 0o644
  own = tmp_path / "own.safetensors"
  export(of_site, own)
  assert stat.S_IMODE(own.stat().st_mode) == 0o600
  found = open_trained(own, folders=folders)
  assert found.site == SITE and same(found.own, of_site.own)
  beside = open_trained(file, site=SITE, own=run.path, folders=folders)
  assert beside.site == SITE and same(beside.own, of_site.own)
  for path, options, wanted in (
    (own, {"site": "fir"}, f"expected --site={SITE}"),
    (file, {"site": SITE}, "got no --own=RUN"),
    (file, {"round": 2}, "expected --round=3"),
  ):
    with pytest.raises(UserError, match=wanted):
      open_trained(path, folders=folders, **options)
    with pytest.raises(UserError, match=wanted):  # and before models are looked for
      open_trained(path, **options)


@pytest.mark.parametrize(
  "change, wanted",
  [
    (lambda said: said["config"].update(seed=7), "seed: 0 -> 7$"),
    (
      lambda said: said["config"]["prompter"].update(temperature=3.0),
      "temperature: .*3.0",
    ),
    (lambda said: said["facts"]["backbones"].update(clip="x"), "backbones.clip: '.*' -> 'x'"),
  ],
)
def test_a_sites_prompt_of_another_federation_is_refused(run, file, tmp_path, change, wanted):
  said = json.loads((run.path / "config.json").read_text())
  change(said)
  (tmp_path / "config.json").write_text(json.dumps(said))
  for path in (file, run.path):
    with pytest.raises(UserError, match=wanted) as error:
      open_trained(path, site=SITE, own=tmp_path)
    assert str(error.value).startswith(f"--own={tmp_path}: expected the run of a site")


def test_a_file_that_cannot_be_written_is_one_clear_message(of_site, tmp_path):
  with pytest.raises(UserError, match="expected a name that ends with"):
    export(of_site, tmp_path / "p.bin")
  (tmp_path / "f").write_text("")
  with pytest.raises(UserError, match="expected to write a prompter"):
    export(of_site, tmp_path / "f" / "p.safetensors")


def changed(file, path, leaves=None, **said):
  """A file like another, but for some of it."""
  content = load_file(file) | (leaves or {})
  content = {name: leaf for name, leaf in content.items() if leaf is not None}
  save_file(content, path, metadata={"afspl_jax": json.dumps(metadata(file) | said)})
  return path


def config_with(file, group, **fields):
  config = metadata(file)["config"]
  return {"config": config | {group: config[group] | fields}}


@pytest.mark.parametrize(
  "leaves, wanted",
  [
    ({"visual_prompt": np.zeros((4, 17), np.float32)}, r"visual_prompt is F32\[4, 17\] and not"),
    ({"visual_prompt": np.zeros((4, 16), np.float64)}, r"is F64\[4, 16\] and not F32\[4, 16\]"),
    ({"visual_prompt": None}, "visual_prompt is missing"),
    ({"local/prompt": np.zeros((4, 16), np.float32)}, r"local/prompt is .* not one of them"),
    ({"visual_prompt": np.full((4, 16), np.nan, np.float32)}, "not finite"),
  ],
)
def test_leaves_that_are_not_those_of_the_settings_are_refused(
  file, of_site, tmp_path, leaves, wanted
):
  path = changed(file, tmp_path / "x.safetensors", leaves)
  described = prompter_file.describe(path)
  with pytest.raises(UserError, match=wanted):
    prompter_file.read(path, described, of_site.shared, of_site.own)


@pytest.mark.parametrize(
  "said, wanted",
  [
    ({"format": 2}, "format 2 .*this one reads 1"),
    ({"backbones": {"clip": "x"}}, "KeyError: 't5'"),
    ({"backbones": {"clip": 3, "t5": "x"}}, "no name"),
    ({"round": "last"}, "ValueError"),
    ({"config": 3}, "Error"),
    ({"config": {"prompter": {"tokens": "many"}}}, "expected int"),
    ({"config": {"prompter": {"colour": 3}}}, "no such field"),
    ({"site": "a\nb"}, "no name"),
    ({"scores": {"test": {"cider": "good"}}}, "could not convert"),
  ],
)
def test_what_is_said_of_a_prompter_is_checked(file, tmp_path, said, wanted):
  with pytest.raises(UserError, match=wanted) as error:
    prompter_file.describe(changed(file, tmp_path / "x.safetensors", **said))
  assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
  "group, fields, wanted",
  [
    ("prompter", {"pool": 10**9}, "prompter.pool of 1000000000, more than"),
    ("prompter", {"mapper": f"pooled:{10**9}"}, "prompter.mapper"),
    ("eval", {"max_tokens": 10**6}, "eval.max_tokens"),
    ("data", {"instruction_length": 10**7}, "data.instruction_length"),
    ("data", {"instruction_length": 1 << 20}, "data.instruction_length of 1048576, more than 4096"),
    ("backbone", {"clip": "/etc"}, "a path of another machine"),
    ("backbone", {"t5": "../x"}, "a path of another machine"),
    ("backbone", {"clip": "a\x1b[31m"}, "no name"),
    ("fed", {"strategy": "nope"}, "strategy"),
  ],
)
def test_settings_that_would_fill_the_memory_or_look_around_are_refused(
  file, tmp_path, group, fields, wanted
):
  path = changed(file, tmp_path / "x.safetensors", **config_with(file, group, **fields))
  with pytest.raises(UserError, match=wanted):
    prompter_file.describe(path)


def test_a_run_that_is_scored_on_many_examples_gives_a_file_that_can_be_read(file, tmp_path):
  many = config_with(file, "eval", test_examples=5000, val_examples=10**6, common_examples=10**6)
  described = prompter_file.describe(changed(file, tmp_path / "x.safetensors", **many))
  assert described.config.eval.test_examples == 5000


def test_a_name_from_a_file_is_one_word_of_the_command_that_fetches_it(file, tmp_path):
  path = changed(file, tmp_path / "x.safetensors", **config_with(file, "backbone", clip="a;b c"))
  with pytest.raises(UserError, match="hf download 'a;b c'\n"):
    open_trained(path)


def test_files_that_are_no_prompters_are_refused(file, tmp_path):
  path = tmp_path / "x.safetensors"
  shutil.copy(file, path)
  with open(path, "r+b") as opened:
    opened.truncate(path.stat().st_size - 1)
  with pytest.raises(UserError, match="expected a file of `afspl export`"):
    prompter_file.describe(path)
  for text in (None, "{", "[" * 100_000, "3", "null", " " * (1 << 21), '{"format": 1e999}'):
    save_file({"x": np.zeros(1, np.float32)}, path, metadata=text and {"afspl_jax": text})
    with pytest.raises(UserError, match="expected a file of `afspl export`"):
      prompter_file.describe(path)


def test_described_survives_a_round_trip(file, of_site, tmp_path):
  described = prompter_file.describe(file)
  other = tmp_path / "x.safetensors"
  scores = {"val": {"cider": 0.5}}
  described = dataclasses.replace(described, round=7, scores=scores)
  prompter_file.write(other, described, of_site.shared, {})
  assert prompter_file.describe(other) == described
