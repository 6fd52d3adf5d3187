"""Device mesh and shardings of batches and parameters. Training, inference, checkpoints and planning use them.

The mesh has three axes. `data` replicates frozen weights and is the only axis that crosses slices; `fsdp` and `tensor`
split large frozen weights. Batches are split over `data` and `fsdp`. Trainable parameters are small and replicated.
All shardings are NamedShardings for `jax.jit`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from salmonn_jax.batch import Batch
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.models.common import ShardingRules
from salmonn_jax.models.salmonn import SHARDING_RULES

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))
CLIP_SPEC = PartitionSpec(MESH_AXES)  # the encoders are not tensor-parallel, so clips are split over `tensor` as well

# Sharding rules of frozen weights: (regular expression of the path, mesh axis of each dimension). Each path matches one
# rule. Each component in `salmonn_jax.models` declares its own. `fsdp` splits the dimension that is gathered layer by
# layer. `tensor` splits the language model only: the encoders are too small for tensor parallelism to pay for an
# all-reduce in every layer. An axis of size 1 has no effect, so the sizes of the mesh choose between replication, fsdp
# and tensor.
FROZEN_RULES: ShardingRules = SHARDING_RULES


def make_mesh(axis_sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the device mesh.

    Args:
      axis_sizes: sizes by axis. By default `data` takes all remaining devices and the other axes have size 1.
      devices: devices of the mesh; by default all.

    Raises:
      UserError: an axis is unknown, the sizes do not multiply to the number of devices, or the number of slices does
        not divide the size of `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    for axis in axis_sizes:
        if axis not in MESH_AXES:
            raise unknown_name("mesh axis", axis, MESH_AXES)
    num_model_devices = math.prod(size for axis, size in axis_sizes.items() if axis != "data")
    shape = [
        axis_sizes.get("data", max(len(devices) // max(num_model_devices, 1), 1)),
        axis_sizes.get("fsdp", 1),
        axis_sizes.get("tensor", 1),
    ]
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} needs {math.prod(shape)} devices, not {len(devices)}; "
            "change `mesh` in the configuration"
        )
    # Axis types are passed explicitly because the default differs between jax.make_mesh and Mesh, and between versions.
    return Mesh(_arrange(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arrange(shape: list[int], devices: list[jax.Device]) -> np.ndarray:
    """Arranges devices in the shape of the mesh, so that neighbours on an axis are neighbours in the slice's network.

    Only the axis `data` crosses slices.
    """
    num_slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if num_slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % num_slices:
        raise UserError(
            f"{num_slices} slices are joined by the axis data, but {num_slices} does not divide its size {shape[0]}; "
            f"choose mesh.fsdp * mesh.tensor such that it divides the {len(devices) // num_slices} devices of one slice"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // num_slices, *shape[1:]), (num_slices, 1, 1), devices, allow_split_physical_axes=True
    )


def frozen_spec(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Returns the PartitionSpec of a frozen weight.

    A dimension is not split if the size of its mesh axis does not divide it.

    Args:
      path: path of the parameter.
      shape: shape of the parameter.
      mesh: device mesh.

    Raises:
      ValueError: `FROZEN_RULES` is wrong. Not exactly one rule matches the path, or the rule uses an axis twice or does
        not have one entry per dimension.
    """
    matching_specs = [spec for pattern, spec in FROZEN_RULES if re.fullmatch(pattern, path)]
    if len(matching_specs) != 1:
        raise ValueError(f"{len(matching_specs)} sharding rules for {path}; exactly one must match")
    axes = [axis for axis in matching_specs[0] if axis is not None]
    if len(axes) != len(set(axes)) or len(matching_specs[0]) not in (0, len(shape)):
        raise ValueError(f"the sharding rule {matching_specs[0]} of {path} does not fit its shape {tuple(shape)}")
    dims = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(matching_specs[0], shape, strict=False))
    return PartitionSpec(*dims)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Dtype and sharding of parameters that are loaded or created.

    Attributes:
      mesh: device mesh; None puts all parameters on the first device of this host.
      frozen_dtype: dtype of frozen parameters; None keeps their dtype.
      trainable_paths: paths of trainable parameters, which are float32 and replicated.
    """

    mesh: Mesh | None = None
    frozen_dtype: str | None = None
    trainable_paths: frozenset[str] = frozenset()

    def __call__(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Returns the shape, dtype and sharding of a parameter, given its path and its stored shape and dtype."""
        if path in self.trainable_paths:
            dtype, spec = jnp.float32, PartitionSpec()
        else:
            dtype = self.frozen_dtype or leaf.dtype
            spec = PartitionSpec() if self.mesh is None else frozen_spec(path, leaf.shape, self.mesh)
        local_sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if self.mesh is None else None
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=local_sharding or NamedSharding(self.mesh, spec))


LOCAL = Placement()  # on the first device of this host, with the dtype on disk


def num_data_shards(mesh: Mesh) -> int:
    """Returns the number of data shards, into which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array with a leading axis of rows, which is split over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH_SPEC)


def clip_sharding(mesh: Mesh, num_clips: int) -> NamedSharding:
    """Returns the sharding of an array with a leading axis of clips, see `batch_shardings`."""
    return NamedSharding(mesh, CLIP_SPEC if num_clips % mesh.size == 0 else BATCH_SPEC)


def batch_shardings(mesh: Mesh, num_clips: int) -> Batch:
    """Returns the sharding of every array of a batch.

    Rows are split over `data` and `fsdp`. Clips are split over all axes if the number of devices divides `num_clips`,
    and like rows otherwise.
    """
    clips = clip_sharding(mesh, num_clips)
    of_clips = dict.fromkeys(("pcm", "pcm_length", "frames"), clips)
    return Batch(**dict.fromkeys(Batch._fields, row_sharding(mesh)) | of_clips)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def local_streams(mesh: Mesh, num_streams: int) -> tuple[int, ...]:
    """Returns the indices of the data streams that this process reads.

    Stream v fills the v-th of `num_streams` equal parts of a batch. A process reads the streams whose rows are on its
    devices.
    """
    process_index, devices_by_shard = jax.process_index(), mesh.devices.reshape(num_data_shards(mesh), -1)
    local_shards = {
        i
        for i, shard_devices in enumerate(devices_by_shard)
        if any(device.process_index == process_index for device in shard_devices)
    }
    return tuple(v for v in range(num_streams) if v * len(devices_by_shard) // num_streams in local_shards)


def make_global_batch(local_batch: Batch, mesh: Mesh, num_streams: int) -> Batch:
    """Builds the global arrays of a batch from the parts that the processes have read.

    Args:
      local_batch: numpy arrays with the rows and clips of the streams `local_streams(mesh, num_streams)`, in order.
      mesh: device mesh.
      num_streams: number of streams of a batch.
    """
    stream_index = {v: i for i, v in enumerate(local_streams(mesh, num_streams))}

    def make_global_array(array: np.ndarray, array_sharding: NamedSharding) -> jax.Array:
        stream_size = len(array) // len(stream_index)  # rows or clips of a stream

        def read_local(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(stream_size * num_streams)
            local_start = stream_index[start // stream_size] * stream_size + start % stream_size if stream_size else 0
            return array[local_start : local_start + stop - start]

        return jax.make_array_from_callback((stream_size * num_streams, *array.shape[1:]), array_sharding, read_local)

    return jax.tree.map(
        make_global_array, local_batch, batch_shardings(mesh, len(local_batch.pcm) // len(stream_index) * num_streams)
    )


def check_batch(data: DataConfig, mesh: Mesh, gradient_accumulation_steps: int = 1) -> None:
    """Raises UserError if a batch cannot be split into data shards, and these into micro-batches of whole streams.

    Args:
      data: sizes of the batch.
      mesh: device mesh.
      gradient_accumulation_steps: number of micro-batches.
    """
    shards = num_data_shards(mesh)
    if data.streams % shards:
        raise UserError(
            f"data.streams={data.streams}: must be a multiple of {shards}, the number of data shards of the mesh "
            f"{dict(mesh.shape)}; change it, which also changes the order of the data, or change the mesh"
        )
    if data.streams // shards % gradient_accumulation_steps:
        raise UserError(
            f"gradient_accumulation_steps={gradient_accumulation_steps}: must divide {data.streams // shards}, the "
            f"streams of each of the {shards} data shards of the mesh {dict(mesh.shape)} (data.streams={data.streams})"
        )
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % shards:
            suggested_size = max(shards, size // shards * shards)
            raise UserError(
                f"data.{name}={size}: must be a multiple of {shards}, the number of data shards of the mesh "
                f"{dict(mesh.shape)}, such as data.{name}={suggested_size}"
            )
