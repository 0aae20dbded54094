"""What flows between the layers, and the axis letters used in every shape annotation.

`b` batch, `c` clients in a cohort, `d` T5 width, `f` CLIP joint feature width, `w` CLIP vision
width, `l` text length, `v` visual tokens, `m` prompts in the pool, `h` key width, `p` tokens per
prompt, `s` prompt sources, `t` decoder steps, `n` vocabulary, `k` local steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int
from PIL import Image

Params = Any  # a pytree of the trainable leaves: nested dicts of float32 arrays


@dataclass(frozen=True)
class Example:
  """One image with what may be said of it.

  With a question, `references` are its accepted answers; without, the image's captions.
  """

  id: str  # of this example alone, in all splits of its data set
  image: str  # key of the image, in one split alone; examples of one image share it
  references: tuple[str, ...]
  question: str = ""
  site: str = ""
  labels: tuple[str, ...] = ()  # categories that a partition may be over, the main one first


@runtime_checkable
class Source(Protocol):
  """One split of a data set: random access, decoded lazily."""

  fingerprint: str  # equal fingerprints have equal examples and images
  pictures: str  # equal ones have equal images in one order, whatever is said of them

  def __len__(self) -> int:
    """Number of examples."""
    ...

  def __getitem__(self, index: int) -> Example:
    """The example at `index`."""
    ...

  def images(self) -> Sequence[str]:
    """Keys of the images, each once, in a fixed order."""
    ...

  def load_image(self, key: str) -> Image.Image:
    """Decodes one image as RGB; called from several threads at once.

    Raises:
      UserError: it cannot be; names it.
    """
    ...


class Batch(NamedTuple):
  """Model inputs and targets; a leading `k` axis stacks the batches of local steps.

  NumPy arrays as they come from the data, JAX arrays inside a step.
  """

  tokens: Float[Array, "*k b v w"]  # CLIP vision tokens, CLS first
  image: Float[Array, "*k b f"]  # CLIP joint feature of the image
  text: Float[Array, "*k b f"]  # CLIP's direction of the instruction; never of the caption
  instruction: Int[Array, "*k b l"]  # T5 ids of the instruction
  instruction_mask: Bool[Array, "*k b l"]
  targets: Int[Array, "*k b t"]  # T5 ids of the caption or answer, end token included
  targets_mask: Bool[Array, "*k b t"]  # False on padding and on rows that only fill up a batch
  personal: Bool[Array, "*k b"]  # rows that may use the client's own (local) prompt
  # CLIP feature of the target text, for the contrastive loss only; never an input of the encoder.
  # Zeros on rows that do not take part: answers, rows that fill up a batch, or all of them.
  caption: Float[Array, "*k b f"]
