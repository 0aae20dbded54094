"""Prompter files: their contents, and files from untrusted sources."""

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
from afspl_jax.runs.trained.prompter_file import (
  read_prompter_info,
  read_prompter_leaves,
  write_prompter,
)
from afspl_jax.runs.trained.trained_prompter import export_prompter, open_trained_prompter
from tests.recorded_run import rich_run

SITE = "elm"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return rich_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


@pytest.fixture(scope="module")
def of_site(run):
  return open_trained_prompter(run.path, site=SITE)


@pytest.fixture(scope="module")
def file(run, of_site, tmp_path_factory):
  """The file of a global model."""
  path = tmp_path_factory.mktemp("exported") / "p.safetensors"
  export_prompter(of_site._replace(site=""), path)
  return path


@pytest.fixture(scope="module")
def folders(run):
  return {kind: getattr(run.config.backbone, kind) for kind in ("clip", "t5")}


def same(a, b):
  return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def metadata(path):
  with safe_open(path, framework="np") as opened:
    return json.loads(opened.metadata()["afspl_jax"])


def test_a_file_restores_the_prompter(run, file, folders, of_site):
  found = open_trained_prompter(file, folders=folders)
  assert same(found.shared, of_site.shared) and same(found.shared, run.checkpoint(3)["ema"])
  assert not any(leaf.any() for leaf in jax.tree.leaves(found.local))
  assert (found.round, found.site) == (3, "")
  assert found.scores["test"]["cider"] == run.line("test")["cider"]
  assert found.config.prompter == run.config.prompter


def test_a_file_names_its_backbones_and_nothing_of_the_machine(run, file):
  header = metadata(file)
  assert header["backbones"] == run.setup.facts["backbones"] and header["format"] == 1
  assert header["config"]["backbone"]["clip"] == "clip" and header["config"]["data"]["dir"] == ""
  sites = list(run.setup.clients["train"])
  assert SITE in sites
  text = json.dumps(header, ensure_ascii=False)  # a path or a name as it is, whatever is in it
  for secret in (run.config.data.dir, run.config.backbone.t5, str(run.path), *sites):
    assert secret not in text and secret.encode() not in file.read_bytes()
  with pytest.raises(UserError, match=r"no folder .*clip"):
    open_trained_prompter(file)


def test_a_local_prompt_is_in_a_file_only_on_request(run, file, of_site, folders, tmp_path):
  prompt = of_site.local["local"]["prompt"]
  assert prompt.any() and prompt.tobytes() not in file.read_bytes()
  assert not any(name.startswith("local") for name in load_file(file))
  assert stat.S_IMODE(file.stat().st_mode) == 0o644
  own = tmp_path / "own.safetensors"
  export_prompter(of_site, own)
  assert stat.S_IMODE(own.stat().st_mode) == 0o600
  found = open_trained_prompter(own, folders=folders)
  assert found.site == SITE and same(found.local, of_site.local)
  beside = open_trained_prompter(file, site=SITE, own=run.path, folders=folders)
  assert beside.site == SITE and same(beside.local, of_site.local)
  for path, options, wanted in (
    (own, {"site": "fir"}, f"expected --site={SITE}"),
    (file, {"site": SITE}, "expected --own=RUN"),
    (file, {"round": 2}, "expected --round=3"),
  ):
    with pytest.raises(UserError, match=wanted):
      open_trained_prompter(path, folders=folders, **options)
    with pytest.raises(UserError, match=wanted):  # and before models are looked for
      open_trained_prompter(path, **options)


@pytest.mark.parametrize(
  "change, wanted",
  [
    (lambda config: config["config"].update(seed=7), "seed: 0 -> 7$"),
    (
      lambda config: config["config"]["prompter"].update(temperature=3.0),
      "temperature: .*3.0",
    ),
    (lambda config: config["facts"]["backbones"].update(clip="x"), "backbones.clip: '.*' -> 'x'"),
  ],
)
def test_a_local_prompt_of_another_federation_is_rejected(run, file, tmp_path, change, wanted):
  config = json.loads((run.path / "config.json").read_text())
  change(config)
  (tmp_path / "config.json").write_text(json.dumps(config))
  for path in (file, run.path):
    with pytest.raises(UserError, match=wanted) as error:
      open_trained_prompter(path, site=SITE, own=tmp_path)
    assert str(error.value).startswith(f"--own={tmp_path}: expected the run of a site")


def test_a_file_that_cannot_be_written_is_one_clear_message(of_site, tmp_path):
  with pytest.raises(UserError, match="expected a name that ends with"):
    export_prompter(of_site, tmp_path / "p.bin")
  (tmp_path / "f").write_text("")
  with pytest.raises(UserError, match="expected to write a prompter"):
    export_prompter(of_site, tmp_path / "f" / "p.safetensors")


def changed(file, path, leaves=None, **fields):
  """A copy of a file with some changes."""
  content = load_file(file) | (leaves or {})
  content = {name: leaf for name, leaf in content.items() if leaf is not None}
  save_file(content, path, metadata={"afspl_jax": json.dumps(metadata(file) | fields)})
  return path


def config_with(file, group, **fields):
  config = metadata(file)["config"]
  return {"config": config | {group: config[group] | fields}}


@pytest.mark.parametrize(
  "leaves, wanted",
  [
    ({"visual_prompt": np.zeros((4, 17), np.float32)}, r"visual_prompt is F32\[4, 17\], expected"),
    ({"visual_prompt": np.zeros((4, 16), np.float64)}, r"is F64\[4, 16\], expected F32\[4, 16\]"),
    ({"visual_prompt": None}, "visual_prompt is missing"),
    ({"local/prompt": np.zeros((4, 16), np.float32)}, r"local/prompt is .* expected no such leaf"),
    ({"visual_prompt": np.full((4, 16), np.nan, np.float32)}, "not finite"),
  ],
)
def test_leaves_that_do_not_match_the_settings_are_rejected(
  file, of_site, tmp_path, leaves, wanted
):
  path = changed(file, tmp_path / "x.safetensors", leaves)
  info = read_prompter_info(path)
  with pytest.raises(UserError, match=wanted):
    read_prompter_leaves(path, info, of_site.shared, of_site.local)


@pytest.mark.parametrize(
  "fields, wanted",
  [
    ({"format": 2}, "format 2 .*this version reads format 1"),
    ({"backbones": {"clip": "x"}}, "KeyError: 't5'"),
    ({"backbones": {"clip": 3, "t5": "x"}}, "not a name"),
    ({"round": "last"}, "ValueError"),
    ({"config": 3}, "Error"),
    ({"config": {"prompter": {"tokens": "many"}}}, "expected int"),
    ({"config": {"prompter": {"colour": 3}}}, "no such field"),
    ({"site": "a\nb"}, "not a name"),
    ({"scores": {"test": {"cider": "good"}}}, "could not convert"),
  ],
)
def test_metadata_are_checked(file, tmp_path, fields, wanted):
  with pytest.raises(UserError, match=wanted) as error:
    read_prompter_info(changed(file, tmp_path / "x.safetensors", **fields))
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
    ("backbone", {"clip": "a\x1b[31m"}, "not a name"),
    ("fed", {"strategy": "nope"}, "strategy"),
  ],
)
def test_settings_that_would_fill_the_memory_or_name_paths_are_rejected(
  file, tmp_path, group, fields, wanted
):
  path = changed(file, tmp_path / "x.safetensors", **config_with(file, group, **fields))
  with pytest.raises(UserError, match=wanted):
    read_prompter_info(path)


def test_large_numbers_of_scored_examples_are_accepted(file, tmp_path):
  many = config_with(file, "eval", test_examples=5000, val_examples=10**6, common_examples=10**6)
  info = read_prompter_info(changed(file, tmp_path / "x.safetensors", **many))
  assert info.config.eval.test_examples == 5000


def test_a_name_from_a_file_is_quoted_in_the_suggested_command(file, tmp_path):
  path = changed(file, tmp_path / "x.safetensors", **config_with(file, "backbone", clip="a;b c"))
  with pytest.raises(UserError, match="hf download 'a;b c'\n"):
    open_trained_prompter(path)


def test_other_files_are_rejected(file, tmp_path):
  path = tmp_path / "x.safetensors"
  shutil.copy(file, path)
  with open(path, "r+b") as opened:
    opened.truncate(path.stat().st_size - 1)
  with pytest.raises(UserError, match="expected a file of `afspl export`"):
    read_prompter_info(path)
  for text in (None, "{", "[" * 100_000, "3", "null", " " * (1 << 21), '{"format": 1e999}'):
    save_file({"x": np.zeros(1, np.float32)}, path, metadata=text and {"afspl_jax": text})
    with pytest.raises(UserError, match="expected a file of `afspl export`"):
      read_prompter_info(path)


def test_described_survives_a_round_trip(file, of_site, tmp_path):
  info = read_prompter_info(file)
  other = tmp_path / "x.safetensors"
  scores = {"val": {"cider": 0.5}}
  info = dataclasses.replace(info, round=7, scores=scores)
  write_prompter(other, info, of_site.shared, {})
  assert read_prompter_info(other) == info
