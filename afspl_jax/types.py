"""The types that packages exchange, and the axis letters of every shape annotation.

`b` batch, `c` clients in a cohort, `d` width of the language model, `f` joint feature width of the
vision encoder, `w` width of its tokens, `l` text length, `v` visual tokens, `m` prompts in the
pool, `h` key width, `p` tokens per prompt, `s` prompt sources, `t` decoder steps, `n` vocabulary,
`k` local steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int
from PIL import Image

Params = Any  # a pytree of the trainable leaves: nested dicts of float32 arrays


@dataclass(frozen=True)
class Example:
  """One image with its texts.

  With a question, `references` are its accepted answers; without one, the captions of the image.
  """

  id: str  # unique in all splits of the data set
  image: str  # key of the image, unique to one split; examples of one image have the same key
  references: tuple[str, ...]
  question: str = ""
  site: str = ""
  labels: tuple[str, ...] = ()  # categories for label-skewed partitions, the main one first


@runtime_checkable
class Source(Protocol):
  """One split of a data set: random access, decoded lazily."""

  fingerprint: str  # equal fingerprints have equal examples and images
  images_fingerprint: str  # equal ones have equal images in the same order; texts may differ

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
      UserError: it cannot be decoded; the message names it.
    """
    ...


class Batch(NamedTuple):
  """Model inputs and targets; a leading `k` axis stacks the batches of local steps.

  The arrays are NumPy arrays outside of a step and JAX arrays inside it.
  """

  tokens: Float[Array, "*k b v w"]  # image tokens, leading ones (CLIP's CLS) first
  image: Float[Array, "*k b f"]  # joint feature of the image
  text: Float[Array, "*k b f"]  # direction of the instruction; never of the caption
  instruction: Int[Array, "*k b l"]  # ids of the instruction
  instruction_mask: Bool[Array, "*k b l"]
  targets: Int[Array, "*k b t"]  # ids of the caption or answer, end token included
  targets_mask: Bool[Array, "*k b t"]  # False on padding and on rows that only fill up a batch
  personal: Bool[Array, "*k b"]  # rows that may use the client's local prompt
  # Direction of the target text, for the contrastive loss only; never an input of the models. Zero
  # on rows without a contrastive loss: answers, rows that fill up a batch, or all rows.
  caption: Float[Array, "*k b f"]
