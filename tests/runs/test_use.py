"""The commands that use a prompter, but for what it says."""

import json

import pytest
from PIL import Image

from afspl_jax.cli import main
from afspl_jax.errors import UserError
from afspl_jax.evaluation.generate import GeneratedText
from afspl_jax.runs.commands.use import _files
from afspl_jax.runs.trained import model as model_module


class Echo:
  """Says how large an image is."""

  batch_size = 2

  def __init__(self):
    self.asked = []

  def predict(self, asked):
    self.asked.append(len(asked))
    return [
      GeneratedText(f"{one.image.width} {one.question}".strip(), {"global": 1.0}, {3: 0.5})
      for one in asked
    ]


@pytest.fixture
def echo(monkeypatch):
  """What `load` was asked, and a model that needs no training."""
  echo, calls = Echo(), []

  def load(run, **options):
    calls.append((run, options))
    return echo

  monkeypatch.setattr(model_module, "load", load)
  return echo, calls


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  (folder / "more").mkdir(parents=True)
  for width, name in enumerate(("a.png", "b.JPG", "more/c.jpeg"), start=1):
    Image.new("RGB", (width, 5)).save(folder / name)
  (folder / "notes.txt").write_text("no image")
  return folder


def lines(capsys):
  out, err = capsys.readouterr()
  return [json.loads(line) for line in out.splitlines()], err


def test_caption_takes_files_folders_and_patterns(echo, photos, capsys):
  assert main(["caption", "runs/x", str(photos), str(photos / "a.png"), f"{photos}/*.JPG"]) == 0
  found, err = lines(capsys)
  names = ["a.png", "b.JPG", "more/c.jpeg", "a.png", "b.JPG"]
  assert [line["image"] for line in found] == [str(photos / name) for name in names]
  assert [line["prediction"] for line in found] == ["1", "2", "3", "1", "2"]
  assert set(found[0]) == {"image", "prediction"} and err == ""
  assert echo[0].asked == [2, 2, 1] and echo[1][0][0] == "runs/x"


def test_images_that_cannot_be_read_are_named_and_the_others_are_done(echo, photos, capsys):
  (photos / "b.JPG").write_text("no image")
  assert main(["caption", "run", str(photos), str(photos / "none.png")]) == 1
  found, err = lines(capsys)
  assert [line["prediction"] for line in found] == ["1", "3"]
  first, second = err.splitlines()
  assert first.startswith(f"{photos / 'b.JPG'}: expected an image")
  assert second.startswith(f"{photos / 'none.png'}: expected an image")


def test_answer_asks_every_image_the_question(echo, photos, capsys):
  argv = ["answer", "run", str(photos / "a.png"), str(photos / "b.JPG"), "how wide ?", "--prompts"]
  assert main(argv) == 0
  found, _ = lines(capsys)
  assert found[1] == {
    "image": str(photos / "b.JPG"),
    "question": "how wide ?",
    "prediction": "2 how wide ?",
    "fusion": {"global": 1.0},
    "prompts": {"3": 0.5},
  }


def test_options_are_handed_on_and_what_is_not_said_is_the_runs(echo, photos):
  argv = ["caption", "run", str(photos), "--beams=4", "--length-penalty=0.6", "--site=elm"]
  argv += ["--no-repeat-ngram=3", "--round=2", "--t5=there", "--own=mine", "--batch=2"]
  assert main(argv) == 0
  assert echo[1][0][1] == {
    "round": 2,
    "site": "elm",
    "own": "mine",
    "clip": "",
    "t5": "there",
    "batch_size": 2,
    "beams": 4,
    "length_penalty": 0.6,
    "no_repeat_ngram": 3,
  }


@pytest.mark.parametrize(
  "argv, wanted",
  [
    (["caption", "no/run", "a.png"], "expected the folder of a run"),
    (["evaluate", "no/run"], "expected the folder of a run"),
    (["evaluate", "no/run", "--split=Val"], "expected the folder of a run"),
    (["evaluate", "no/run", "--split", "dev"], "expected the folder of a run"),
    (["export", "no/run", "x.safetensors"], "expected the folder of a run"),
    (["evaluate", "r", "--personal", "--site=elm"], "got both"),
    (["caption", "run", "*.nothing"], "expected a pattern that files have"),
    (["answer", "run", "a.png", " "], "expected some words"),
  ],
)
def test_a_mistake_is_one_clear_line_and_status_2(argv, wanted, capsys):
  assert main(argv) == 2
  out, err = capsys.readouterr()
  assert out == "" and wanted in err and err.count("\n") == 1
  assert err.startswith(f"afspl {argv[0]}: ")


def test_a_folder_without_images_is_a_mistake(tmp_path):
  with pytest.raises(UserError, match="got a folder without any"):
    _files([str(tmp_path)])


@pytest.mark.parametrize(
  "pattern, wanted",
  [
    ("**.png", ["a.png"]),  # two stars that are no folders' are one
    ("**/*.jpeg", ["more/c.jpeg"]),
    ("**/*.[pJ]*", ["a.png", "b.JPG"]),
    ("mor?/*", ["more/c.jpeg"]),
  ],
)
def test_patterns_are_the_shells(photos, monkeypatch, pattern, wanted):
  assert _files([f"{photos}/{pattern}"]) == [photos / name for name in wanted]
  monkeypatch.chdir(photos)
  assert list(map(str, _files([pattern]))) == wanted


@pytest.mark.parametrize("command", ["caption", "answer"])
def test_help_says_what_the_tiny_pair_has_seen(command, capsys):
  with pytest.raises(SystemExit):
    main([command, "--help"])
  assert "drawn world" in " ".join(capsys.readouterr().out.split())
