"""A folder of one's own: every line, and every way to write it wrongly."""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afspl_jax.config.experiment import Data
from afspl_jax.data.bad_records import BadRecords, MissingData
from afspl_jax.data.partition import partition
from afspl_jax.data.sources import open_source
from afspl_jax.data.sources.folder import open_splits
from afspl_jax.errors import UserError
from configs.folder import get_config
from tests.data.folders import SPLITS, examples, images, opened, real, write_images


def line(i: int, **values) -> dict:
  return {"image": f"scans/{i}.png", "captions": [f"finding {i}", "no more"]} | values


def write(folder: Path, lines: list) -> Path:
  write_images(folder, [f"scans/{i}.png" for i in range(40)])
  texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in lines]
  (folder / "captions.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
  return folder


def test_lines_become_examples_of_one_split_each(tmp_path):
  sources = opened("folder", write(tmp_path, [line(i) for i in range(40)]))
  found = examples(sources)
  assert sorted(images(sources)) == sorted(f"scans/{i}.png" for i in range(40))
  assert {example.references for example in found} == {
    (f"finding {i}", "no more") for i in range(40)
  }
  assert all(not e.question and not e.site and not e.labels for e in found)
  picture = sources["train"].load_image(sources["train"].images()[0])
  assert picture.mode == "RGB" and picture.size == (4, 3)


def test_a_line_may_have_every_key(tmp_path):
  full = line(
    1,
    captions=[" A scan.\n"],
    question="Is it normal?",
    answers=["yes", "Yes "],
    site="aachen",
    labels=["chest", "x-ray"],
    split="val",
    id=17,
    scanner="other keys may stand there",
  )
  others = [line(i, site="bonn", split=split) for i, split in ((2, "Train"), (3, "TEST"))]
  sources = opened("folder", write(tmp_path, [full, *others]))
  caption, question = (sources["validation"][i] for i in range(2))
  assert (caption.id, caption.references, caption.question) == ("17", ("A scan.",), "")
  assert (question.id, question.references) == ("17-q", ("yes", "Yes"))
  assert question.question == "Is it normal?"
  for example in (caption, question):
    assert (example.site, example.labels) == ("aachen", ("chest", "x-ray"))
    assert example.image == "scans/1.png"


def test_an_image_may_have_several_lines_and_blank_lines_are_skipped(tmp_path):
  asked = [{"image": "./scans//0.png", "question": f"{i}?", "answers": ["no"]} for i in range(3)]
  train = [entry | {"split": "train"} for entry in (*asked, line(0))]
  folder = write(tmp_path, [*train[:2], "", "  ", *train[2:]])
  source = open_source(Data(source="folder", dir=str(folder)), "train")
  assert source.images() == ["scans/0.png"] and len(source) == 4
  assert [source[i].id for i in range(4)] == [f"scans/0.png:{n}" for n in (1, 2, 5, 6)]


FAULTS = [
  ("{", "expected a JSON object; got '{'"),
  ("[" * 100_000, "expected a JSON object"),
  ([1], "expected a JSON object; got [1]"),
  ({"captions": ["a"]}, 'expected the key "image"'),
  (line(1, image=3), '"image" must be text, not blank; got 3'),
  (line(1, image=" "), '"image" must be text, not blank'),
  (line(1, captions="a"), '"captions" must be a list of at least one text'),
  (line(1, captions=[]), '"captions" must be a list of at least one text'),
  (line(1, captions=["a", " "]), "none of them blank; got ['a', ' ']"),
  (line(1, captions=["\ud800"]), '"captions" must be a list'),
  ({"image": "scans/1.png"}, 'expected "captions", or "question" and "answers"'),
  (line(1, question="why?"), '"answers" must be a list'),
  (line(1, answers=["yes"]), 'expected the key "question"'),
  (line(1, caption=["a"]), "expected the key \"captions\"; got 'caption'. Rename it."),
  (line(1, Site="a"), "expected the key \"site\"; got 'Site'"),
  (line(1, lables=["a"]), "expected the key \"labels\"; got 'lables'"),
  (line(1, split="held out"), "\"split\" must be one of train, validation, test; got 'held out'"),
  (line(1, image="a\0b.png"), '"image" must be text, without NUL'),
  (line(1, site="x" * 81), '"site" must be a name of at most 80 printable characters'),
  (line(1, site="a\nb"), '"site" must be a name of at most 80 printable characters'),
  (line(1, id="scans/0.png:1"), '"id" must be unique'),
  (line(0, split="test"), "\"split\" must be as in earlier records of 'scans/0.png', 'train'"),
  (line(1, site="a"), '"site" must be on every line or on none; got none here'),
  (line(77), '"image" must be the name of a file in'),
  (line(1, image="scans"), "got 'scans', which is not a file"),
]
FAULTS += [
  ('{"image": "scans/1.png", "captions": ["a"], "captions": ["b"]}', "key 'captions' twice in one"),
  ('{"image": "scans/1.png", "captions": ["a"], "id": NaN}', "the number NaN, which is not finite"),
  (line(1, captions=["\u200b\u200d"]), '"captions" must be a list of at least one text'),
  (line(1, captions=["\0"]), '"captions" must be a list of at least one text'),
  (line(1, question="\u2060", answers=["yes"]), '"question" must be text, not blank'),
  (line(1, question="what ?", answers=["", None]), '"answers" must be a list of at least one text'),
]


@pytest.mark.parametrize("bad, complaint", FAULTS)
def test_a_malformed_line_is_named_with_file_and_line(tmp_path, bad, complaint):
  folder = write(tmp_path, [line(0, split="train"), "", bad, line(5)])
  with pytest.raises(UserError) as error:
    opened("folder", folder)
  message = str(error.value)
  at = 1 if "every line or on none" in complaint else 3
  assert message.startswith(f"{folder / 'captions.jsonl'}:{at}: ")
  assert complaint in message and "\n" not in message and len(message) < 600


def test_a_byte_that_is_not_utf_8_is_named_with_its_line(tmp_path):
  folder = write(tmp_path, [line(i) for i in range(3)])
  with (folder / "captions.jsonl").open("ab") as file:
    file.write('{"image": "scans/9.png", "captions": ["Müll"]}'.encode("latin-1"))
  with pytest.raises(UserError, match=r"captions\.jsonl:4: expected UTF-8; got byte 0xfc at byte"):
    opened("folder", folder)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
  folder = write(tmp_path, [line(0, split="train", captions=["ä"])])
  path = folder / "captions.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
  assert open_source(Data(source="folder", dir=str(folder)), "train")[0].references == ("ä",)


def test_bad_records_are_left_out_only_up_to_the_limit_and_reported(tmp_path, capsys):
  bad = [line(i, captions=[]) for i in range(40, 46)] + [line(77), "no"]
  folder = write(tmp_path, [*bad[:4], *(line(i) for i in range(40)), *bad[4:]])
  found = examples(opened("folder", folder, max_bad=8))
  assert len(found) == 40
  out = capsys.readouterr().out
  # The images of the first six are not there, which is seen first.
  assert "left out 8 malformed records (7 image missing, 1 not JSON):" in out
  assert f"{folder / 'captions.jsonl'}:1: " in out and "and 3 more" in out
  with pytest.raises(UserError, match=r"data\.max_bad: expected at most 7 malformed records; got"):
    opened("folder", folder, max_bad=7)


def test_a_line_that_is_left_out_gives_no_example(tmp_path):
  half = line(1, question="why?", answers=[])
  found = examples(
    opened("folder", write(tmp_path, [half, *(line(i) for i in range(40))]), max_bad=1)
  )
  assert len(found) == 40


def test_a_missing_file_says_how_to_write_it(tmp_path):
  with pytest.raises(MissingData, match=r"no captions\.jsonl in .*\n.*Write it: a line") as error:
    opened("folder", tmp_path)
  assert "--config.data.dir=FOLDER" in str(error.value)


def test_a_fingerprint_depends_on_texts_and_files_but_not_on_the_folder(tmp_path):
  folder = write(tmp_path / "a", [line(i) for i in range(40)])

  def prints(at: Path = folder) -> dict[str, str]:
    return {split: source.fingerprint for split, source in opened("folder", at).items()}

  first = prints()
  assert prints() == first and len(set(first.values())) == 3
  folder.rename(tmp_path / "b")
  assert prints(tmp_path / "b") == first
  (tmp_path / "b").rename(folder)
  key = opened("folder", folder)["train"].images()[0]
  old = (folder / key).stat()
  write_images(folder, [key])
  os.utime(folder / key, ns=(old.st_atime_ns, old.st_mtime_ns + 1))  # as large as before
  second = prints()
  assert [second[split] == first[split] for split in SPLITS] == [False, True, True]
  write(folder, [line(i, labels=["x"]) if f"scans/{i}.png" == key else line(i) for i in range(40)])
  assert prints()["train"] not in (first["train"], second["train"])


def test_texts_do_not_change_the_fingerprint_of_images(tmp_path):
  """So that a caption is corrected without encoding any image again."""

  folder = write(tmp_path, [])

  def pictures(lines: list) -> list[str]:
    (folder / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return [source.images_fingerprint for source in opened("folder", folder).values()]

  lines = [line(i) for i in range(40)]
  first = pictures(lines)
  assert len(set(first)) == 3
  said = {"captions": ["b"], "site": "s", "labels": ["x"]}
  assert pictures([line(i, id=f"a{i}", **said) for i in range(40)]) == first
  assert not set(pictures(lines[::-1])) & set(first)  # in another order
  write_images(folder, ["scans/x.png"])
  more = pictures([line(0, image="scans/x.png", split="test"), *lines])
  assert [now == before for now, before in zip(more, first, strict=True)] == [True, True, False]


def test_opening_reads_no_image(tmp_path, monkeypatch):
  folder = write(tmp_path, [line(i) for i in range(40)])
  monkeypatch.setattr("PIL.Image.open", None)
  sources = opened("folder", folder)
  for scan in (folder / "scans").iterdir():
    scan.write_bytes(b"no image")
  monkeypatch.undo()
  with pytest.raises(UserError, match=rf"^{folder}/scans/\d+\.png: expected an image; got"):
    sources["train"].load_image(sources["train"].images()[0])


names = st.text(max_size=12) | st.lists(
  st.sampled_from(["..", ".", "scans", "0.png", "", "C:", "\\"]), max_size=4
).map("/".join)
anything = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=4),
  lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
  max_leaves=4,
)
right = st.fixed_dictionaries(
  {"image": st.just("scans/0.png"), "captions": st.just(["a"])},
  optional={"question": st.just("b?"), "answers": st.just(["c"]), "labels": st.just(["d"])},
)
wrong = st.fixed_dictionaries(
  {"image": st.just("scans/0.png") | names | anything},
  optional={
    key: anything
    for key in ("captions", "question", "answers", "site", "labels", "split", "id", "other")
  },
)
# Also what is right but for one or two of its parts.
records = right | wrong | st.builds(lambda good, bad: {**good, **bad}, right, wrong)


@given(st.lists(records | anything, max_size=3))
@settings(
  max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_lines_become_examples_or_named_bad_records(tmp_path, lines):
  (tmp_path / "scans").mkdir(exist_ok=True)
  (tmp_path / "scans" / "0.png").touch()
  path = tmp_path / "captions.jsonl"
  path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
  bad_records = BadRecords(None)
  sources = open_splits(SPLITS, Data(dir=str(tmp_path)), bad_records)
  for example in examples(sources):
    assert example.image == "scans/0.png" and all(text.strip() for text in example.references)
  for error in bad_records.found:
    assert re.match(rf"{re.escape(str(path))}:[1-3]: ", str(error)) and "\n" not in str(error)


def test_real_photos_in_a_folder_can_be_partitioned(tmp_path):
  shared = real("coco_cc")
  lines = []
  for i, photo in enumerate(json.loads((shared / "captions.json").read_text())):
    texts = photo["captions"]
    lines.append({"image": photo["file_name"], "captions": texts, "site": f"site{i % 5}"})
  (tmp_path / "images").mkdir()
  for photo in (shared / "images").iterdir():
    (tmp_path / "images" / photo.name).write_bytes(photo.read_bytes())
  (tmp_path / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
  found = examples(sources := opened("folder", tmp_path))
  assert len(found) == 86 and sum(len(e.references) for e in found) == 430
  splits = {split: examples({split: source}) for split, source in sources.items()}
  for parts in partition(splits, get_config().data, seed=0).values():
    assert list(parts) == [f"site{i}" for i in range(5)]
  assert {sources["test"].load_image(key).mode for key in sources["test"].images()} == {"RGB"}
