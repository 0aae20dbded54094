"""The forms in which the weights of a checkpoint may be stored; pickle is none of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from afspl_jax.models.huggingface import flax_msgpack, gguf_file, safetensors_file


@runtime_checkable
class TensorFile(Protocol):
  """An opened file of tensors, under the keys and with the axes that PyTorch models have."""

  def keys(self) -> list[str]:
    """The keys of all tensors."""
    ...

  def shape(self, key: str) -> tuple[int, ...]:
    """The shape of a tensor, without reading it."""
    ...

  def dtype(self, key: str) -> str:
    """The storage type of a tensor as safetensors calls it, without reading it."""
    ...

  def tensor(self, key: str) -> np.ndarray:
    """Reads a tensor."""
    ...


class WeightForm(NamedTuple):
  """One form.

  Attributes:
    name: of such a file, for messages.
    single: the name of the only file of a checkpoint.
    index_file: the name of the file that says which shard holds which tensor; "": never in shards.
    open: opens a file; raises ValueError or OSError if it is damaged.
    torch_key: from a key in the index to that of PyTorch.
  """

  name: str
  single: str
  index_file: str
  open: Callable[[Path], TensorFile]
  torch_key: Callable[[str], str] = str


# In the order in which they are looked for.
FORMS = (
  WeightForm(
    "safetensors file",
    "model.safetensors",
    "model.safetensors.index.json",
    safetensors_file.SafetensorsFile,
  ),
  WeightForm(
    "Flax msgpack file",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
    flax_msgpack.FlaxFile,
    flax_msgpack.torch_key,
  ),
  WeightForm("GGUF file", "model.gguf", "", gguf_file.GgufFile),  # in a folder of gguf_folder.py
)
SAFETENSORS = FORMS[0]
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def find_form(folder: Path) -> WeightForm | None:
  """The form of a folder's weights; None if there are none in a known form."""
  for form in FORMS:
    if (folder / form.single).is_file() or (folder / form.index_file).is_file():
      return form
  return None
