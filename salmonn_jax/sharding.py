"""Where arrays live: one mesh, batches split over its data axes, parameters replicated.

The mesh has the axes `data` (replicas; across slices), `fsdp` and `tensor` (parts of big frozen weights). Batches are
split over `data` and `fsdp`. pjit today is `jax.jit` with these NamedShardings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from salmonn_jax.errors import UserError, unknown_name

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over all devices (or those given). Axes left out have size 1; `data` takes what is left over."""
    devices = jax.devices() if devices is None else list(devices)
    for axis in sizes:
        if axis not in AXES:
            raise unknown_name("mesh axis", axis, AXES)
    others = math.prod(size for axis, size in sizes.items() if axis != "data")
    shape = [sizes.get("data", len(devices) // max(others, 1)), sizes.get("fsdp", 1), sizes.get("tensor", 1)]
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {dict(zip(AXES, shape, strict=True))} needs {math.prod(shape)} devices, not {len(devices)}; "
            "change the sizes of `mesh` in the configuration"
        )
    # Axis types are passed explicitly: the default differs between jax.make_mesh and Mesh, and between versions.
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every array of a batch, over the data axes."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(rows: int, clips: int, mesh: Mesh) -> None:
    """Raises UserError if a batch cannot be cut evenly over the mesh."""
    shards = batch_shards(mesh)
    for name, size in (("rows", rows), ("clips", clips)):
        if size % shards:
            near = max(shards, size // shards * shards)
            raise UserError(
                f"data.{name}={size} does not divide over {shards} data shards (mesh {dict(mesh.shape)}); "
                f"use a multiple of {shards}, such as data.{name}={near}"
            )
