"""Contracts of the two frozen networks: what the rest of the package asks of them.

An implementation is an `nnx.Module` in a folder of its own, whose parameters are all `nnx.Param`.
`models/architectures.py` finds it by the `model_type` of a checkpoint. Its methods are pure
functions of its parameters, for callers split the module, keep its structure and merge it inside a
jitted program.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image


@runtime_checkable
class ImagePreprocessor(Protocol):
  """Turns images into the pixels of a vision encoder, in two halves.

  The first half runs on the host; the second half, a table look-up, runs on the device, so only
  a byte for each colour is sent there.
  """

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of every cropped image."""
    ...

  @property
  def levels(self) -> Float[np.ndarray, "256 3"]:
    """The float32 value of each of the 256 levels of a colour, by channel."""
    ...

  def crop(self, image: Image.Image) -> UInt8[np.ndarray, "h x 3"]:
    """Resizes and crops an image of any size and mode; several threads may call it at once."""
    ...


class VisionSizes(NamedTuple):
  """The sizes of a vision encoder that its users build on."""

  image_size: int  # pixels, height and width
  leading_tokens: int  # tokens before those of the patches, such as CLIP's CLS
  patches: int  # patch tokens of an image, row by row
  token_width: int  # w
  feature_width: int  # f, of the joint feature of an image, and of a text if it encodes texts
  text_length: int  # most tokens of a text, both ends included; 0: it has no text tower
  text_vocabulary: int = 0  # ids that the text tower knows; 0: any tokenizer is accepted
  text_eos_id: int | None = None  # the id that ends a text; None: the tokenizer's highest id

  @property
  def tokens(self) -> int:
    """Tokens of an image (v)."""
    return self.leading_tokens + self.patches


@runtime_checkable
class VisionEncoder(Protocol):
  """A frozen encoder of images and, if it has a text tower, of texts in the same space."""

  @property
  def sizes(self) -> VisionSizes:
    """Its sizes."""
    ...

  @property
  def dtype(self) -> DTypeLike:
    """The dtype of its outputs."""
    ...

  def encode_image(
    self, pixels: Float[Array, "b h x 3"]
  ) -> tuple[Float[Array, "b v w"], Float[Array, "b f"]]:
    """Encodes images.

    Args:
      pixels: prepared by the checkpoint's image processor, `sizes.image_size` high and wide.

    Returns:
      The tokens, with the leading ones first, and the joint feature, of any length.
    """
    ...

  def encode_text(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b f"]:
    """Encodes texts; is never called where `sizes.text_length` is 0.

    Args:
      ids: of the checkpoint's tokenizer, padded on the right.
      mask: true at tokens, false at padding.

    Returns:
      The joint feature of each text, of any length.
    """
    ...


class LanguageSizes(NamedTuple):
  """The sizes and special tokens of a language model that its users build on."""

  width: int  # d, of an embedding
  vocabulary: int  # n
  pad_id: int  # fills texts up after their end
  eos_id: int  # ends texts
  start_id: int | None = None  # an encoder-decoder's input before a text; None: it has none


@runtime_checkable
class DecodeCache(Protocol):
  """What a language model keeps between two decoding steps; an opaque pytree of arrays.

  Each row starts with one text. Beam search forks it into several, and lets them follow each other.
  """

  def fork(self, beams: int) -> "DecodeCache":
    """Gives each row `beams` texts that continue its only text."""
    ...

  def follow(self, parents: Int[Array, "b beams"]) -> "DecodeCache":
    """Lets each text continue the row's text `parents`; several may share a parent."""
    ...


# A pytree of float arrays with a leading axis `b`: what a model keeps of the prefix it has read.
States = Any


@runtime_checkable
class LanguageModel(Protocol):
  """A frozen model that reads a soft prefix and writes a text.

  An encoder-decoder encodes the prefix: its states are the encoder's output, and a start token
  comes before the text. In a decoder-only model the text continues the prefix: the states are the
  prefix's keys and values, and its last position gives the first token.
  """

  @property
  def sizes(self) -> LanguageSizes:
    """Its sizes and special tokens."""
    ...

  def embedding_matrix(self) -> Float[Array, "n d"]:
    """The input embedding of every token, in the parameters' dtype."""
    ...

  def embed(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
    """Looks up the embeddings of tokens, for `encode`."""
    ...

  def encode(self, embeddings: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> States:
    """Reads the prefix.

    Args:
      embeddings: of soft prompts and tokens.
      mask: true where a position may be attended to.

    Returns:
      The states that the other methods take; differentiable in `embeddings`.
    """
    ...

  def summarise(self, states: States, mask: Bool[Array, "b l"]) -> Float[Array, "b d"]:
    """One vector for each row's prefix, differentiable in `states`, for the contrastive loss."""
    ...

  def target_logits(
    self, states: States, mask: Bool[Array, "b l"], targets: Int[Array, "b t"]
  ) -> Float[Array, "b t n"]:
    """Scores the vocabulary at each position of a given target (teacher forcing).

    Args:
      states: from `encode`.
      mask: the mask that `encode` was given.
      targets: target ids, end token included.

    Returns:
      float32 logits of each target token, given the prefix and the target's tokens before it.
    """
    ...

  def start(
    self, states: States, mask: Bool[Array, "b l"], length: int
  ) -> tuple[Float[Array, "b n"], DecodeCache]:
    """Begins a text after each prefix.

    Args:
      states: from `encode`.
      mask: the mask that `encode` was given.
      length: the longest text, in tokens; at most `length - 1` steps follow.

    Returns:
      float32 logits of the first token, and the cache of a text without tokens.
    """
    ...

  def decode_step(
    self, ids: Int[Array, " r"], cache: Any
  ) -> tuple[Float[Array, "r n"], DecodeCache]:
    """Takes one decoding step.

    Args:
      ids: the newest token of each text, the texts of a row next to each other.
      cache: from `start` or the previous step.

    Returns:
      float32 logits of the next token, and the cache with this token in it.
    """
    ...
