"""The shapes world: what is drawn, said and asked. Scenes are read back from their identity."""

import re
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds

from afspl_jax.config.experiment import Data
from afspl_jax.data.shapes import builder, language
from afspl_jax.data.shapes.language import FORMS, Style
from afspl_jax.data.shapes.scene import COLOURS, SHAPES, SPLITS, Scene, Thing, render, sample_scene
from afspl_jax.data.shapes.sites import SITES, sample_record
from afspl_jax.data.sources import open_source
from afspl_jax.errors import UserError
from afspl_jax.models.huggingface.preprocessing import Tokenizer
from pretrain.corpus import pretraining_scene

SITE_NAMES = [site.name for site in SITES]


@pytest.fixture(scope="module")
def records():
  """A few records of every site and split, as the builder draws them."""
  out = []
  for split in ("train", "validation", "test"):
    seen: set[str] = set()
    for number, site in enumerate(SITES):
      rng = np.random.default_rng((5, number))
      out += [(site, split, sample_record(site, split, seen, rng)) for _ in range(12)]
  return out


def read(identity: str) -> list[dict[str, str]]:
  """The things of a scene, from its identity alone."""
  parts = (re.fullmatch(r"(\w+) (\w+) (\w+) (\d)(\d)", part) for part in identity.split(";"))
  return [
    dict(zip(("size", "colour", "shape", "row", "column"), p.groups(), strict=True)) for p in parts
  ]


def plain(style: Style, word: str) -> str:
  """A style's word for a colour, shape or size, in the words of an identity."""
  lexicons = (
    language.COLOUR_WORDS[style.colours],
    language.SHAPE_WORDS[style.shapes],
    language.SIZE_WORDS[style.sizes],
  )
  return next(key for lexicon in lexicons for key, said in lexicon.items() if said == word)


def answer(style: Style, identity: str, question: str) -> str | None:
  """The right answer, worked out from the question's words; None for kinds not checked here."""
  things = read(identity)
  if question.startswith("how many"):
    return ("zero", "one", "two", "three")[len(things)]
  if found := re.fullmatch(r"what colour is the (\w+) \?", question):
    (thing,) = [t for t in things if t["shape"] == plain(style, found[1])]
    return language.COLOUR_WORDS[style.colours][thing["colour"]]
  if found := re.fullmatch(r"is there an? (\w+) (\w+) \?", question):
    wanted = (plain(style, found[1]), plain(style, found[2]))
    return "yes" if wanted in [(t["colour"], t["shape"]) for t in things] else "no"
  if found := re.fullmatch(r"is the (\w+) (above|below|left of|right of) the (\w+) \?", question):
    (a,) = [t for t in things if t["shape"] == plain(style, found[1])]
    (b,) = [t for t in things if t["shape"] == plain(style, found[3])]
    axis = "row" if found[2] in ("above", "below") else "column"
    before = a[axis] < b[axis] if found[2] in ("above", "left of") else a[axis] > b[axis]
    return "yes" if before else "no"
  return None


def test_splits_and_pretraining_share_no_scene(records):
  scenes = {name: set() for name in SPLITS}
  for _, split, record in records:
    scenes[split].add(record.scene.identity)
  rng = np.random.default_rng(0)
  scenes["pretrain"] = {pretraining_scene(rng).identity for _ in range(400)}
  assert sum(map(len, scenes.values())) == len(set().union(*scenes.values()))
  # Random scenes do meet: the sets above are apart by rule, not by luck.
  drawn = [sample_scene(rng, counts=(1.0, 0.0, 0.0)).identity for _ in range(2000)]
  assert len(set(drawn)) < 1000
  shares = Counter(sample_scene(rng).split for _ in range(2000))
  assert 800 < shares["pretrain"] < 1000 and 600 < shares["train"] < 800


def test_sites_share_no_scene_and_repeat_none(records):
  for split in ("train", "validation", "test"):
    identities = [record.scene.identity for _, s, record in records if s == split]
    assert len(identities) == len(set(identities)) == 12 * len(SITES)


def test_the_prepared_splits_share_no_scene(shapes_dir):
  prepared = tfds.builder_from_directory(str(shapes_dir / "shapes_world" / "1.0.0"))
  scenes = {
    split: [r["scene"].decode() for r in source_of(prepared, split)]
    for split in ("train", "validation", "test")
  }
  for split, identities in scenes.items():
    assert len(set(identities)) == len(identities) == prepared.info.splits[split].num_examples
    assert all(Scene(things(identity)).split == split for identity in identities)
  assert not set(scenes["train"]) & set(scenes["test"])
  assert not set(scenes["validation"]) & (set(scenes["train"]) | set(scenes["test"]))


def test_two_processes_that_draw_the_world_at_once_both_get_it(tmp_path, monkeypatch):
  monkeypatch.setattr(builder, "PER_SITE", {"train": 1, "validation": 1, "test": 1})
  generate = builder.ShapesWorld._generate_examples
  quicker = []

  def overtaken(self, split):
    if not quicker:  # while the first is at its first split, the second draws them all
      quicker.append(None)
      quicker[0] = open_source(Data(dir=str(tmp_path)), "test")
    return generate(self, split)

  monkeypatch.setattr(builder.ShapesWorld, "_generate_examples", overtaken)
  slower = open_source(Data(dir=str(tmp_path)), "test")
  assert [slower[i] for i in range(len(slower))] == [quicker[0][i] for i in range(len(slower))]
  assert len(slower) >= len(SITES)
  assert [path.name for path in (tmp_path / "shapes_world").iterdir()] == ["1.0.0"]


def test_a_folder_that_cannot_hold_the_world_is_one_clear_error(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"data.dir: expected a folder .* --config.data.dir=FOLDER$"):
    open_source(Data(dir=str(tmp_path / "file")), "test")


def source_of(prepared, split):
  raw = {"image": tfds.decode.SkipDecoding()}
  return prepared.as_data_source(split=split, decoders=raw)


def things(identity: str) -> tuple[Thing, ...]:
  return tuple(
    Thing(int(t["row"]), int(t["column"]), t["colour"], t["shape"], t["size"])
    for t in read(identity)
  )


def test_an_image_has_five_captions_or_two_questions(records):
  for _, _, record in records:
    assert (len(record.captions), len(record.questions)) in [(5, 0), (0, 2)]
  asked = Counter(site.name for site, _, record in records if record.questions)
  assert asked["ginkgo"] > asked["birch"]


def test_answers_are_right(records):
  kinds = Counter()
  rng = np.random.default_rng(3)
  for site, _, record in records:
    for question in language.questions(record.scene, site.style, rng):
      expected = answer(site.style, record.scene.identity, question.text)
      if expected is not None:
        kinds[question.kind, question.answer] += 1
        assert question.answer == expected, (record.scene.identity, question.text)
  for kind in ("exists", "relation"):
    assert kinds[kind, "yes"] > 30 and kinds[kind, "no"] > 30
  assert {kind for kind, _ in kinds} == {"count", "colour", "exists", "relation"}


def test_captions_name_every_thing_in_the_words_of_the_sites_style(records):
  for site, _, record in records:
    style = site.style
    foreign = set().union(*(set(lexicon.values()) for lexicon in language.COLOUR_WORDS))
    foreign -= set(language.COLOUR_WORDS[style.colours].values())
    sizes = set().union(*(set(lexicon.values()) for lexicon in language.SIZE_WORDS))
    if style.name_sizes:
      sizes -= set(language.SIZE_WORDS[style.sizes].values())
    for caption in record.captions:
      words = caption.split()
      assert not set(words) & (foreign | sizes)
      for thing in record.scene.things:
        assert language.COLOUR_WORDS[style.colours][thing.colour] in words
        assert language.SHAPE_WORDS[style.shapes][thing.shape] in words
      if style.form != "relation":
        for thing in record.scene.things:
          assert language.place_phrase(thing, style) in caption


def test_a_site_keeps_to_its_sentence_form(records):
  marks = {
    "sentence": rf"({'|'.join(language.OPENERS)}) an? .* \.",
    "note": r"[^.]*",
    "report": r"findings : .* (impression|summary) : (one|two|three) (object|finding|item)s? \.",
    "place_first": r"(in|on|at|north|south|east|west|midpoint)\b.* (is|lies|find) an? .* \.",
    "tally": r"(a total of|exactly|just) (one|two|three) (object|thing|item)s? : .*\( .* \) \.",
    "relation": r"(the|an?|only|just) .* \.",
  }
  assert set(marks) == set(FORMS)
  for site, _, record in records:
    for caption in record.captions:
      assert re.fullmatch(marks[site.style.form], caption), (site.name, caption)


@pytest.mark.parametrize("form", FORMS)
def test_articles_fit_the_next_word(form):
  style = Style(form, colours=1, sizes=0, name_sizes=False)  # amber, emerald, azure
  rng = np.random.default_rng(0)
  texts = []
  for _ in range(60):
    scene = sample_scene(rng)
    texts += language.captions(scene, style, rng)
    texts += [question.text for question in language.questions(scene, style, rng)]
  assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
  assert any("an amber" in text for text in texts)


def test_a_seed_determines_the_rendering():
  scene = sample_scene(np.random.default_rng(1))
  images = [
    np.asarray(render(scene, SITES[0].look, np.random.default_rng(seed))) for seed in (7, 7, 8)
  ]
  assert images[0].shape == (64, 64, 3) and images[0].dtype == np.uint8
  np.testing.assert_array_equal(images[0], images[1])
  assert (images[0] != images[2]).any()


def test_every_sites_camera_looks_different():
  scene = Scene((Thing(1, 1, "red", "circle", "small"),))
  looks = np.stack(
    [
      np.asarray(render(scene, site.look, np.random.default_rng(0)), float)[:10].mean((0, 1))
      for site in SITES
    ]
  )
  distances = np.linalg.norm(looks[:, None] - looks[None], axis=-1)
  assert distances[~np.eye(len(SITES), dtype=bool)].min() > 10


def test_things_are_rendered_at_their_positions():
  rng = np.random.default_rng(0)
  for colour, rgb in COLOURS.items():
    for shape in SHAPES:
      row, column = rng.integers(3, size=2)
      scene = Scene((Thing(int(row), int(column), colour, shape, "big"),))
      pixels = np.asarray(render(scene, SITES[0].look, rng), float)
      like = np.abs(pixels - rgb).sum(-1) < 90
      y, x = (places.mean() for places in np.nonzero(like))
      assert like.sum() > 40, (colour, shape)
      assert int(y * 3 / 64) == row and int(x * 3 / 64) == column, (colour, shape)


def test_every_word_is_one_token(tiny_checkpoints, records):
  tokenizer = Tokenizer(tiny_checkpoints.t5)
  texts = list(language.CAPTION_INSTRUCTIONS)
  for _, _, record in records:
    texts += record.captions
    texts += [text for q in record.questions for text in (q.text, q.answer)]
  ids, mask = tokenizer.tokenize(texts, 80)
  assert mask.sum(1).tolist() == [len(text.split()) + 1 for text in texts]
  assert not (ids == 2).any()  # <unk>
  assert tokenizer.decode(ids) == texts


def test_sites_have_unique_names_and_styles():
  assert len(set(SITE_NAMES)) == 10
  assert len({site.style for site in SITES}) == 10
  assert {site.style.form for site in SITES} == set(FORMS)
