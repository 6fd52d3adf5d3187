"""Where arrays live: one mesh, batches split over its data axes, one rule for every frozen weight.

The mesh has the axes `data` (replicas; across slices), `fsdp` and `tensor` (parts of big frozen weights). Batches are
split over `data` and `fsdp`. What is trained is small, and the same everywhere. pjit today is `jax.jit` with these
NamedShardings.
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

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))
CLIP_SPEC = PartitionSpec(MESH_AXES)  # chips that share a language model by `tensor` share the clips it is to hear

P = PartitionSpec
# One rule a frozen weight: which axis of the mesh each of its dimensions lies over. `fsdp` cuts the dimension that is
# gathered layer by layer; `tensor` cuts heads, feed-forward width and vocabulary, so that a layer's two products need
# one sum. The encoders are too small to be worth a sum in every layer, and what SALMONN adds too small to be cut.
# Axes of size 1 do nothing: the sizes of the mesh alone choose between replicas, fsdp and tensor.
FROZEN_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"llama/embedding", P("tensor", "fsdp")),
    (r"llama/layers/(q|k|v|gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
    (r"llama/layers/(o|down)_proj/kernel", P(None, "tensor", "fsdp")),
    (r"llama/lm_head/kernel", P("fsdp", "tensor")),
    (r"llama/(layers/(attention|ffn)_)?norm/scale", P()),
    (r"(whisper|beats)/layers/\w+/kernel", P(None, "fsdp", None)),
    (r"(whisper|beats)/layers/(\w+/(bias|scale)|gate_scale)", P()),
    (r"(whisper/conv[12]|beats/patch_proj)/kernel", P()),
    (r"(whisper/conv[12]|beats/(patch_proj|positional_conv))/bias", P()),
    (r"whisper/positions|beats/(patch_kernel|relative_bias|positional_conv/(direction|magnitude))", P()),
    (r"(whisper/norm|beats/(patch_)?norm)/(scale|bias)", P()),
    (r"query_tokens|(qformer|ln_speech|ln_audio|projection)/.*|.*/lora_[ab]", P()),
)


def make_mesh(axis_sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over all devices (or those given). Axes left out have size 1; `data` takes what is left over."""
    devices = jax.devices() if devices is None else list(devices)
    for axis in axis_sizes:
        if axis not in MESH_AXES:
            raise unknown_name("mesh axis", axis, MESH_AXES)
    others = math.prod(size for axis, size in axis_sizes.items() if axis != "data")
    shape = [
        axis_sizes.get("data", len(devices) // max(others, 1)),
        axis_sizes.get("fsdp", 1),
        axis_sizes.get("tensor", 1),
    ]
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} needs {math.prod(shape)} devices, not {len(devices)}; "
            "change the sizes of `mesh` in the configuration"
        )
    # Axis types are passed explicitly: the default differs between jax.make_mesh and Mesh, and between versions.
    return Mesh(_arrange(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _arrange(shape: list[int], devices: list[jax.Device]) -> np.ndarray:
    """Devices so that neighbours on an axis are neighbours in the slice; only `data` goes over the network between."""
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise UserError(
            f"{slices} slices are joined by the axis data, whose size {shape[0]} they do not divide; "
            f"make mesh.fsdp times mesh.tensor divide the {len(devices) // slices} devices of one slice"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def frozen_spec(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The rule of the frozen weight `path`; dimensions that an axis of this mesh does not divide stay whole.

    Raises:
      ValueError: not exactly one rule, or one that lays two dimensions over one axis: a fault of the table.
    """
    found = [spec for pattern, spec in FROZEN_RULES if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} sharding rules for {path}, not one")
    axes = [axis for axis in found[0] if axis is not None]
    if len(axes) != len(set(axes)) or len(found[0]) not in (0, len(shape)):
        raise ValueError(f"the sharding rule {found[0]} of {path} does not fit its shape {tuple(shape)}")
    divides = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(found[0], shape, strict=False))
    return PartitionSpec(*divides)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where parameters go as they are read or made, and in which dtype.

    Attributes:
      mesh: each device gets its part; None: all is on the first device of this host.
      frozen_dtype: of frozen weights; None keeps the one they have.
      trained: paths of what is trained: float32, and the same everywhere.
    """

    mesh: Mesh | None = None
    frozen_dtype: str | None = None
    trainable_paths: frozenset[str] = frozenset()

    def __call__(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Shape, dtype and sharding of the parameter `path`, of which `leaf` says what it is."""
        if path in self.trainable_paths:
            dtype, spec = jnp.float32, PartitionSpec()
        else:
            dtype = self.frozen_dtype or leaf.dtype
            spec = PartitionSpec() if self.mesh is None else frozen_spec(path, leaf.shape, self.mesh)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if self.mesh is None else None
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=here or NamedSharding(self.mesh, spec))


LOCAL = Placement()  # all on the first device of this host, as it is on disk


def num_data_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def row_sharding(mesh: Mesh) -> NamedSharding:
    """A leading axis of rows, over the data axes."""
    return NamedSharding(mesh, BATCH_SPEC)


def batch_shardings(mesh: Mesh, num_clips: int) -> Batch:
    """Of every array of a batch with so many clips: rows over the data axes, clips over all where they divide."""
    rows = NamedSharding(mesh, BATCH_SPEC)
    sound = NamedSharding(mesh, CLIP_SPEC) if num_clips % mesh.size == 0 else rows
    return Batch(**dict.fromkeys(Batch._fields, rows) | {"pcm": sound, "pcm_length": sound})


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_streams(mesh: Mesh, num_streams: int) -> tuple[int, ...]:
    """Which of the streams that make a batch (stream v its v-th equal part) hold rows of this process' devices."""
    here, parts = jax.process_index(), mesh.devices.reshape(num_data_shards(mesh), -1)
    mine = {i for i, part in enumerate(parts) if any(device.process_index == here for device in part)}
    return tuple(v for v in range(num_streams) if v * len(parts) // num_streams in mine)


def make_global_batch(local_batch: Batch, mesh: Mesh, num_streams: int) -> Batch:
    """The global arrays of a batch of which this process has read `local_streams(mesh, streams)`, in their order."""
    place = {v: i for i, v in enumerate(local_streams(mesh, num_streams))}

    def put(array: np.ndarray, where: NamedSharding) -> jax.Array:
        part = len(array) // len(place)  # rows, or clips, of a stream

        def read(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(part * num_streams)
            begin = place[start // part] * part + start % part if part else 0
            return array[begin : begin + stop - start]

        return jax.make_array_from_callback((part * num_streams, *array.shape[1:]), where, read)

    return jax.tree.map(put, local_batch, batch_shardings(mesh, len(local_batch.pcm) // len(place) * num_streams))


def check_batch(data: DataConfig, mesh: Mesh) -> None:
    """Raises UserError if a batch cannot be cut evenly over the mesh."""
    shards = num_data_shards(mesh)
    if data.streams % shards:
        raise UserError(
            f"data.streams={data.streams} does not divide over {shards} data shards (mesh {dict(mesh.shape)}); set it "
            f"to a multiple of {shards}, which gives the run another order of its data, or change the mesh"
        )
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % shards:
            near = max(shards, size // shards * shards)
            raise UserError(
                f"data.{name}={size} does not divide over {shards} data shards (mesh {dict(mesh.shape)}); "
                f"use a multiple of {shards}, such as data.{name}={near}"
            )
