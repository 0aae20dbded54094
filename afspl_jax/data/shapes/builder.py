"""The shapes world as a tensorflow-datasets builder, written and read without TensorFlow."""

import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from afspl_jax.data.shapes.scene import SIZE, render
from afspl_jax.data.shapes.sites import SITES, sample_record

PER_SITE = {"train": 400, "validation": 30, "test": 100}  # images of each of the ten sites


class ShapesWorld(tfds.core.GeneratorBasedBuilder):
  """Coloured shapes with captions and questions by ten sites, each with its own style."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="Scenes of one to three shapes with five captions or two questions each.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
          "id": tfds.features.Text(),
          "scene": tfds.features.Text(doc="identity; no two splits share one"),
          "site": tfds.features.Text(),
          "category": tfds.features.Text(doc="shape of the first thing in reading order"),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "questions": tfds.features.Sequence(tfds.features.Text()),
          "answers": tfds.features.Sequence(tfds.features.Text(), doc="one a question"),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in PER_SITE}

  def _generate_examples(self, split):
    seen: set[str] = set()
    for number, site in enumerate(SITES):
      rng = np.random.default_rng((1, number, list(PER_SITE).index(split)))
      for i in range(PER_SITE[split]):
        record = sample_record(site, split, seen, rng)
        png = io.BytesIO()
        render(record.scene, site.look, rng).save(png, "PNG", compress_level=1)
        png.seek(0)
        key = f"{site.name}-{split}-{i:04d}"
        yield (
          key,
          {
            "image": png,  # encoded; an array would make tensorflow-datasets import TensorFlow
            "id": key,
            "scene": record.scene.identity,
            "site": site.name,
            "category": record.scene.things[0].shape,
            "captions": list(record.captions),
            "questions": [q.text for q in record.questions],
            "answers": [q.answer for q in record.questions],
          },
        )
