"""Fetches and writes COCO captions without TensorFlow: `python -m afspl_jax.data.prepare_coco`.

tensorflow-datasets' own `tfds build coco_captions` needs TensorFlow for its command line, for one
dtype and to unpack zip files, and fetches 20 GB of COCO's test images, which Karpathy's split does
not use. This module writes the same data set.
"""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection import coco_captions

from afspl_jax.data.tfds_reader import tfds_folder

_FULL = coco_captions.CocoCaptions.BUILDER_CONFIGS[0]


class CocoCaptions(coco_captions.CocoCaptions, skip_registration=True):  # type: ignore[call-arg]
  """tensorflow-datasets' builder without the parts that need TensorFlow."""

  BUILDER_CONFIGS = (
    type(_FULL)(name=_FULL.name, description=_FULL.description, splits=_FULL.splits[:2]),
  )

  @tfds.core.utils.classproperty
  @classmethod
  def code_path(cls) -> Any:
    """The folder of the downloads' checksums."""
    return coco_captions.CocoCaptions.code_path

  def _info(self) -> tfds.core.DatasetInfo:
    thing = {
      "id": np.int64,
      "area": np.int64,
      "bbox": tfds.features.BBoxFeature(),
      "label": tfds.features.ClassLabel(num_classes=80),
      "is_crowd": np.bool_,
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="COCO 2014 with captions, in the split of Karpathy and Li (2015).",
      homepage="http://cocodataset.org/#home",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(encoding_format="jpeg"),
          "image/filename": tfds.features.Text(),
          "image/id": np.int64,
          "objects": tfds.features.Sequence(thing),
          "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
        }
      ),
    )

  def _split_generators(self, dl_manager: Any) -> Any:
    return super()._split_generators(_Unzip(dl_manager))


class _Unzip:
  """A download manager that unpacks with Python's own zipfile."""

  def __init__(self, downloads: Any):
    self._downloads = downloads

  def download_and_extract(self, urls: Mapping[str, str]) -> dict[str, Path]:
    """Downloads each archive once; returns the folders of their contents."""
    archives = self._downloads.download(dict(urls))
    return {name: _unpacked(Path(archive)) for name, archive in archives.items()}


def _unpacked(archive: Path) -> Path:
  folder = archive.with_name(archive.name + ".unpacked")
  if not folder.exists():
    partly = archive.with_name(archive.name + ".part")
    with zipfile.ZipFile(archive) as file:
      file.extractall(partly)
    partly.rename(folder)
  return folder


def main(argv: list[str] | None = None) -> None:
  """Parses the command line and prepares COCO."""
  parser = argparse.ArgumentParser(
    prog="python -m afspl_jax.data.prepare_coco", description="Fetches COCO captions (20 GB)."
  )
  parser.add_argument("folder", nargs="?", default="", help="default: where launch.py looks")
  folder = tfds_folder(parser.parse_args(argv).folder)
  CocoCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
  print(f"coco_captions is prepared under {folder}")


if __name__ == "__main__":
  main()
