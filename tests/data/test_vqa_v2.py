"""VQA v2's pair of files, with real photos and with wrong entries."""

import json
import re
from pathlib import Path

import pytest

from afspl_jax.data.bad_records import MissingData
from afspl_jax.errors import UserError
from tests.data.folders import examples, images, opened, real, write_images, write_json


def question(i: int, **values) -> dict:
  return {"question_id": 100 + i, "image_id": i // 2, "question": f"Is it {i}? "} | values


def annotation(i: int, **values) -> dict:
  said = {
    "question_id": 100 + i,
    "image_id": i // 2,
    "answer_type": "yes/no" if i % 3 else "other",
    "multiple_choice_answer": "yes",
    "answers": [{"answer": text, "answer_id": 1} for text in ["yes"] * 8 + ["no"] * 2],
  }
  return said | values


def write(folder: Path, part: str = "val2014", questions=(), annotations=(), count=80) -> Path:
  """Two questions of each image; pairs of a number and an entry replace some."""
  asked, answered = ([make(i) for i in range(count)] for make in (question, annotation))
  for entries, changes in ((asked, questions), (answered, annotations)):
    for number, entry in changes:
      entries[number] = entry
  name = f"v2_OpenEnded_mscoco_{part}_questions.json"
  write_json(folder / name, {"data_subtype": part, "questions": asked})
  name = f"v2_mscoco_{part}_annotations.json"
  write_json(folder / name, {"data_subtype": part, "annotations": answered})
  write_images(folder / part, [f"COCO_{part}_{i:012d}.jpg" for i in range(count // 2)])
  return folder


def test_all_ten_answers_of_a_question_are_kept(tmp_path):
  found = examples(sources := opened("vqa_v2", write(tmp_path)))
  assert len(found) == 80 and len(images(sources)) == 40
  by_id = {example.id: example for example in found}
  example = by_id["107"]
  assert (example.question, example.image) == ("Is it 7?", "COCO_val2014_000000000003.jpg")
  assert example.references == ("yes",) * 8 + ("no",) * 2
  # Questions 6 and 7 are of one image, and of two types.
  assert example.labels == by_id["106"].labels == ("other", "yes/no")
  assert by_id["104"].labels == ("yes/no",)


def test_a_blank_answer_of_several_is_skipped_and_counted(tmp_path, capsys):
  answers = [{"answer": text} for text in ["yes", "", "no", " \u200b", None]]
  folder = write(tmp_path, annotations=[(3, annotation(3, answers=answers))])
  found = {example.id: example.references for example in examples(opened("vqa_v2", folder))}
  assert len(found) == 80 and found["103"] == ("yes", "no")
  said = capsys.readouterr().out
  assert "left out 3 blank answers, the first of " in said and "annotation 4\n" in said


def test_ids_are_one_with_and_without_padding_and_point(tmp_path):
  folder = write(
    tmp_path,
    questions=[(2, question(2, image_id=1.0)), (3, question(3, image_id="000000000001"))],
    annotations=[
      (2, annotation(2, image_id="01", question_id=102.0)),
      (3, annotation(3, question_id="0103")),
      (4, {key: value for key, value in annotation(4).items() if key != "image_id"}),
    ],
  )
  found = {example.id: example.image for example in examples(opened("vqa_v2", folder))}
  assert len(found) == 80
  assert found["102"] == found["103"] == "COCO_val2014_000000000001.jpg"


def test_images_may_be_named_by_ids_with_their_padding(tmp_path):
  asked = [question(i, image_id=f"{i:05d}") for i in range(40)]
  write_json(tmp_path / "questions.json", {"questions": asked})
  answered = [annotation(i, image_id=i) for i in range(40)]
  write_json(tmp_path / "annotations.json", {"annotations": answered})
  write_images(tmp_path / "images", [f"{i:05d}.png" for i in range(40)])
  assert len(images(opened("vqa_v2", tmp_path))) == 40


def test_val_serves_validation_and_test(tmp_path):
  write(tmp_path, "train2014", count=20)
  sources = opened("vqa_v2", write(tmp_path))
  assert len(sources["train"]) == 20
  assert 10 < len(sources["validation"]) < len(sources["test"]) < 70


def test_question_files_without_annotations_are_ignored(tmp_path):
  for part in ("test2015", "test-dev2015"):
    name = f"v2_OpenEnded_mscoco_{part}_questions.json"
    write_json(tmp_path / name, {"data_subtype": part, "questions": [question(0)]})
  write(tmp_path, "train2014", count=20)
  assert len(examples(opened("vqa_v2", write(tmp_path)))) == 100
  name = "v2_OpenEnded_mscoco_train2015_questions.json"
  write_json(tmp_path / name, {"data_subtype": "train2015", "questions": []})
  with pytest.raises(UserError, match=r"train2014_questions\.json and .*train2015_questions\.json"):
    opened("vqa_v2", tmp_path)


@pytest.mark.parametrize(
  "changes, complaint",
  [
    ({"questions": [(3, 1)]}, "questions.json: question 4: expected a JSON object; got 1"),
    ({"questions": [(3, question(2))]}, 'question 4: "question_id" must be unique'),
    ({"questions": [(3, question(3, question=""))]}, 'question 4: "question" must be text'),
    ({"questions": [(3, question(3, image_id=77))]}, 'question 4: "image_id" must be the name of'),
    ({"questions": [(3, question(3, image_id="../x"))]}, 'question 4: "image_id" must be'),
    ({"annotations": [(3, annotation(3, answers=[]))]}, 'annotation 4: "answers" must be a list'),
    (
      {"annotations": [(3, annotation(3, answers=[{"answer": " "}]))]},
      'annotation 4: "answer" must',
    ),
    ({"annotations": [(3, annotation(2))]}, 'annotation 4: "question_id" must be unique'),
    (
      {"annotations": [(3, annotation(3, image_id=5))]},
      "annotation 4: \"image_id\" must be that of the question, '1'; got '5'. Correct one",
    ),
    (
      {"annotations": [(3, annotation(3, answers=[{"answer": ""}, {"answer": 7}]))]},
      'annotation 4: "answer" must be text',
    ),
    (
      {"annotations": [(3, annotation(99))]},
      'annotation 4: "question_id" must be the id of an entry',
    ),
  ],
)
def test_a_malformed_entry_is_named_with_its_file_and_number(tmp_path, changes, complaint):
  folder = write(tmp_path, **changes)
  with pytest.raises(UserError) as error:
    opened("vqa_v2", folder)
  assert re.match(rf"{folder}/v2_\w+val2014_(questions|annotations)\.json: ", str(error.value))
  assert complaint in str(error.value)


def test_annotations_of_a_bad_entry_are_left_out(tmp_path):
  folder = write(
    tmp_path,
    questions=[(3, question(3, question=""))],
    annotations=[(5, annotation(5, answers=[]))],
  )
  assert len(examples(opened("vqa_v2", folder, max_bad=2))) == 78


def test_a_question_without_answers_is_malformed(tmp_path):
  folder = write(tmp_path)
  path = folder / "v2_mscoco_val2014_annotations.json"
  write_json(path, {"annotations": [annotation(i) for i in range(79)]})
  with pytest.raises(
    UserError, match=r"question 80: \"question_id\" must be the id of an entry in"
  ):
    opened("vqa_v2", folder)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(MissingData, match=r"no \*annotations\.json in"):
    opened("vqa_v2", tmp_path)
  (write(tmp_path) / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
  with pytest.raises(MissingData, match=r"no \*questions\.json in"):
    opened("vqa_v2", tmp_path)
  write_json(tmp_path / "v2_train2014_questions.json", {"questions": []})
  with pytest.raises(UserError, match="expected its questions in a file"):
    opened("vqa_v2", tmp_path)


@pytest.mark.parametrize("part", ["{outside}", "../outside", "images/../../outside"])
def test_the_name_of_a_part_cannot_lead_out_of_the_folder(tmp_path, part):
  folder, outside = tmp_path / "data", tmp_path / "outside"
  write(folder, count=4)
  (folder / "images").mkdir()
  (folder / "val2014").rename(outside)
  write_images(outside, [f"{i}.jpg" for i in range(2)])  # named without the part too
  path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
  said = {"data_subtype": part.format(outside=outside), "questions": [question(0)]}
  write_json(path, said)
  with pytest.raises(MissingData, match="no images of") as error:
    opened("vqa_v2", folder)
  assert "outside" not in str(error.value)


def test_questions_find_real_photos_of_2017(tmp_path):
  shared = real("coco_cc")
  numbers = [photo["image_id"] for photo in json.loads((shared / "captions.json").read_text())]
  (tmp_path / "images").symlink_to(shared / "images")
  asked = [question(i, image_id=number) for i, number in enumerate(numbers)]
  write_json(tmp_path / "questions.json", {"questions": asked})
  annotations = [annotation(i, image_id=number) for i, number in enumerate(numbers)]
  write_json(tmp_path / "annotations.json", {"annotations": annotations})
  found = examples(sources := opened("vqa_v2", tmp_path))
  assert len(found) == len(images(sources)) == 86
  assert sources["train"].load_image(sources["train"][0].image).mode == "RGB"
