"""The visual mapper: image tokens to vectors that the language model reads (BUILD.md, "Method")."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afspl_jax.errors import UserError
from afspl_jax.models.contracts import VisionSizes


class Adapter(nnx.Module):
  """A bottleneck beside the linear map. Its ends may stay at a site; then only its middle is sent.

  Ghiasvand et al. 2025, "pFedMMA: Personalized Federated Fine-Tuning with Multi-Modal Adapter for
  Vision-Language Models": every client keeps the projections down and up, and the server averages
  the projection between them; here with `fed.local_leaves` "mapper/adapter/[du]*". There the
  adapter is beside frozen layers of CLIP; here beside a linear map that is trained, too.

  The last projection is zero at first. So without trained ends, as in the global model and at a
  newcomer, the adapter adds nothing.
  """

  def __init__(self, width_in: int, width: int, width_out: int, *, rngs: nnx.Rngs):
    self.down = nnx.Linear(width_in, width, rngs=rngs)
    self.middle = nnx.Linear(width, width, rngs=rngs)
    self.up = nnx.Linear(width, width_out, kernel_init=nnx.initializers.zeros, rngs=rngs)

  def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b d"]:
    """Returns what is added to the linear map's result."""
    return self.up(jax.nn.gelu(self.middle(jax.nn.gelu(self.down(x)))))


class VisualMapper(nnx.Module):
  """Maps the patches of an image, or its joint feature, to `num_tokens` vectors of width d.

  Args:
    kind: "linear" or "mlp" over patch tokens, "adapter:N", which is linear with an `Adapter` of
      width N, or "pooled:N", the joint feature to N tokens.
    vision: sizes of the vision encoder; all but "pooled" need a square number of patches.
    patch_pool: side of the squares of neighbouring patches that are averaged first.
    width: d, of the language model.
    hidden: width of the mlp's hidden layer.

  Raises:
    UserError: the kind is unknown, or the patches cannot be pooled.
  """

  def __init__(
    self,
    kind: str,
    *,
    vision: VisionSizes,
    patch_pool: int,
    width: int,
    hidden: int,
    rngs: nnx.Rngs,
  ):
    self.kind, _, count = kind.partition(":")
    self.patch_pool = patch_pool
    self.leading_tokens = vision.leading_tokens
    self.side = math.isqrt(vision.patches)
    if self.kind == "pooled" and count.isdigit() and int(count) > 0:
      self.num_tokens = int(count)
      self.project = nnx.Linear(vision.feature_width, self.num_tokens * width, rngs=rngs)
      return
    width_is_given = self.kind == "adapter" and count.isdigit() and int(count) > 0
    if kind not in ("linear", "mlp") and not width_is_given:
      raise UserError(f"prompter.mapper: expected linear, mlp, adapter:N or pooled:N; got {kind!r}")
    if self.side**2 != vision.patches or self.side % patch_pool:
      raise UserError(
        f"prompter.patch_pool: expected a divisor of the patch grid's side; got {patch_pool} for"
        f" {vision.patches} patches. Set it to 1."
      )
    self.num_tokens = (self.side // patch_pool) ** 2
    token_width = vision.token_width
    if self.kind == "mlp":
      self.hidden = nnx.Linear(token_width, hidden, rngs=rngs)
      token_width = hidden
    self.project = nnx.Linear(token_width, width, rngs=rngs)
    if self.kind == "adapter":
      self.adapter = Adapter(token_width, int(count), width, rngs=rngs)
    # CLIP's last layer loses the position of a patch (a probe finds it for 35 % of patches).
    self.place = nnx.Param(jnp.zeros((self.num_tokens, width)))

  def __call__(
    self, tokens: Float[Array, "b v w"], image: Float[Array, "b f"]
  ) -> Float[Array, "b tokens d"]:
    """Returns vectors whose components have about unit variance."""
    if self.kind == "pooled":
      return self.project(_normalise(image)).reshape(image.shape[0], self.num_tokens, -1)
    patches, pool = tokens[:, self.leading_tokens :], self.patch_pool
    side = self.side // pool
    grid = patches.reshape(patches.shape[0], side, pool, side, pool, patches.shape[-1])
    x = _normalise(grid.mean(axis=(2, 4)).reshape(patches.shape[0], side * side, -1))
    if self.kind == "mlp":
      x = jax.nn.gelu(self.hidden(x))
    mapped = self.project(x) + self.place[...]
    return mapped + self.adapter(x) if self.kind == "adapter" else mapped


def _normalise(x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
  """Zero mean and unit variance; some components of CLIP's tokens are a hundred times the rest."""
  x = x.astype(jnp.float32)
  x = x - x.mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
