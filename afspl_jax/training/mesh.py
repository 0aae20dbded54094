"""The mesh of devices that share a batch, and how arrays lie on it."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from afspl_jax.errors import UserError
from afspl_jax.types import Params


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """Puts all local devices, or those given, on one `data` axis."""
  devices = devices or jax.local_devices()
  auto = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def row_sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """The sharding of arrays whose `axis` is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(tree: Params, mesh: Mesh) -> Params:
  """Puts a copy of every leaf on every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))


def check_divides(size: int, mesh: Mesh, name: str) -> None:
  """Checks that `size` rows split evenly over the mesh's devices.

  Args:
    size: number of rows.
    mesh: the devices.
    name: the setting that gives the number.

  Raises:
    UserError: they do not.
  """
  devices = int(np.prod(list(mesh.shape.values())))
  if size % devices:
    raise UserError(
      f"{name}: expected a multiple of the {devices} devices; got {size}."
      f" Use {devices * (1 + size // devices)}."
    )
