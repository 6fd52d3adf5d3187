"""Parameters on disk: Orbax checkpoints, written whole or as a stream, and the fingerprint that names them."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import traverse_util

from salmonn_jax.errors import convert_disk_errors
from salmonn_jax.models.parameters import Params
from salmonn_jax.sharding import LOCAL

_CHUNK_BYTES = 4 << 20  # on disk: what a device that holds a part of a tensor reads at a time


class StoredParam:
    """A parameter on disk, of which single layers can be read."""

    def __init__(self, store: tensorstore.TensorStore):
        self._store = store
        self.shape, self.dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)
        self.stacked = len(self.shape) > 2

    def read(self, layer: int | None = None) -> np.ndarray:
        """One place on the leading axis, or all of it."""
        return (self._store if layer is None else self._store[layer]).read().result()

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """As `Streamed` asks."""
        for layer in range(self.shape[0]) if self.stacked else (None,):
            yield layer, self.read(layer)


class StreamedParam(Protocol):
    """A parameter that is made while it is written.

    `pieces` yields (layer, array) for each place on the leading axis, in order, where it is `stacked`, else
    (None, array) once for all of it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]: ...


def save(path: pathlib.Path, params: Params) -> str:
    """Writes parameters, each host its part; atomically: `path` appears when all is written.

    Returns their fingerprint, which is computed from what was written.
    """
    with convert_disk_errors(path), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), unflatten_params(params), force=True)
    return fingerprint_checkpoint(path)


def save_streamed(
    path: pathlib.Path, params: Mapping[str, StreamedParam], on_write: Callable[[int], object] = lambda count: None
) -> str:
    """As `save`, holding no more than one piece of one parameter at a time. One process calls it, and no other waits.

    Args:
      path: of the checkpoint.
      params: by path.
      written: called with the number of bytes of each piece that was handed over.
    """
    writer = _StreamWriter(on_write)
    registry = ocp.type_handlers.create_type_handler_registry((_Leaf, writer))
    tree = unflatten_params({name: _Leaf(name, value) for name, value in params.items()})
    arguments = ocp.args.PyTreeSave(tree, save_args=jax.tree.map(_save_args, tree, is_leaf=_is_leaf))
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="streamed"
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, multiprocessing_options=alone)
    with convert_disk_errors(path), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path.resolve(), args=arguments, force=True)
    return _combine_digests(writer.digests)


def load(path: pathlib.Path, placement: Callable[[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct] = LOCAL) -> Params:
    """Reads parameters that `save`, `save_streamed` or a checkpoint wrote.

    Args:
      path: of the checkpoint.
      place: the dtype and sharding a parameter is read into, given its path and what it is on disk; each device reads
        its own part. By default all is read as it is, to the first device of this host.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        saved = flatten_params(dict(checkpointer.metadata(path.resolve()).item_metadata))
    target = {name: placement(name, jax.ShapeDtypeStruct(x.shape, x.dtype)) for name, x in saved.items()}
    # What is read at a time, beside what is there already: by default Orbax would read all at once.
    parts = (math.prod(x.sharding.shard_shape(x.shape)) * saved[name].dtype.itemsize for name, x in target.items())
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + max(parts, default=0) // 2**30)
    tree = unflatten_params(target)
    arguments = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    with ocp.Checkpointer(handler) as checkpointer:
        return flatten_params(checkpointer.restore(path.resolve(), args=arguments))


def open_params(path: pathlib.Path) -> dict[str, StoredParam]:
    """Opens parameters to be read a piece at a time."""
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, _StreamReader()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        return flatten_params(checkpointer.restore(path.resolve()))


def unflatten_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a tree, the form in which Orbax stores them."""
    return traverse_util.unflatten_dict(params, sep="/")


def flatten_params(tree: Any) -> dict[str, Any]:
    """The reverse of `nested`."""
    return traverse_util.flatten_dict(tree, sep="/")


def fingerprint(params: Params) -> str:
    """A hash of names, shapes, dtypes and bytes, whatever the order or sharding."""
    return _combine_digests({path: _param_digest(path, x, [np.asarray(x)]) for path, x in params.items()})


def fingerprint_checkpoint(path: pathlib.Path) -> str:
    """The fingerprint of parameters on disk, of which little is in memory at a time."""
    return _combine_digests(
        {name: _param_digest(name, x, (piece for _, piece in x.pieces())) for name, x in open_params(path).items()}
    )


def _param_digest(path: str, value: Any, pieces: Iterable[np.ndarray]) -> str:
    """Of one parameter: what it is, and the bytes of its pieces in the order of memory."""
    digest = _start_digest(path, value.shape, value.dtype)
    for piece in pieces:
        digest.update(_bytes(piece))
    return digest.hexdigest()


def _combine_digests(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(" ".join(digests[path] for path in sorted(digests)).encode()).hexdigest()


def _start_digest(path: str, shape: Sequence[int], dtype: Any) -> Any:
    return hashlib.sha256(f"{path} {np.dtype(dtype)} {tuple(shape)}".encode())


def _bytes(value: np.ndarray) -> memoryview | bytes:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b""


class _Leaf:
    """What stands in the tree that is saved: Orbax finds the handler of a leaf by its type."""

    def __init__(self, path: str, value: StreamedParam):
        self.path, self.value = path, value


def _is_leaf(x: Any) -> bool:
    return isinstance(x, _Leaf)


def _release_freed_memory() -> None:
    """Returns freed memory to the system, where the C library would keep it for each of tensorstore's threads."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc has it
        trim(0)


def _chunk_slices(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _save_args(leaf: _Leaf) -> ocp.SaveArgs:
    """Chunks of one layer at most, so that a piece fills whole chunks."""
    if not leaf.value.stacked:
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
    layer = math.prod(leaf.value.shape[1:]) * leaf.value.dtype.itemsize
    return ocp.SaveArgs(chunk_byte_size=max(1, min(layer, _CHUNK_BYTES)), shard_axes=(0,))


class _StreamWriter(ocp.type_handlers.TypeHandler):
    """Writes `_Leaf`s piece by piece, in the layout of Orbax's own arrays; those are read back as usual."""

    def __init__(self, on_write: Callable[[int], object]):
        self.digests: dict[str, str] = {}
        self._on_write = on_write

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(self, values, infos, args=None):
        for leaf, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            value = leaf.value
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=value.shape,
                dtype=value.dtype,
                process_index=jax.process_index(),
                arg=arg,
            )
            store = await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=info.ts_context)
            digest = _start_digest(leaf.path, value.shape, value.dtype)
            for layer, piece in value.pieces():
                digest.update(_bytes(piece))
                place = store if layer is None else store[layer]
                chunk = store.chunk_layout.write_chunk.shape[len(value.shape) - piece.ndim :]
                # A chunk at a time: what is packed of a piece at once would else be as large as the piece.
                for part in itertools.product(*map(_chunk_slices, piece.shape, chunk)):
                    # It is not changed afterwards, so that tensorstore need not copy it first.
                    await place[part].write(piece[part], can_reference_source_data_indefinitely=True)
                    self._on_write(piece[part].nbytes)
            self.digests[leaf.path] = digest.hexdigest()
            _release_freed_memory()
        return []

    async def metadata(self, infos):
        raise NotImplementedError("what was streamed is read by Orbax's own handlers")

    async def deserialize(self, infos, args=None):
        raise NotImplementedError("what was streamed is read by Orbax's own handlers")


class _StreamReader(ocp.type_handlers.TypeHandler):
    """Opens arrays instead of reading them."""

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(self, values, infos, args=None):
        raise NotImplementedError("this handler only reads")

    async def metadata(self, infos):
        raise NotImplementedError("Orbax's own handlers tell of arrays")

    async def deserialize(self, infos, args=None):
        found = []
        for info in infos:
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
            found.append(
                StoredParam(await tensorstore.open(tensorstore.Spec(spec), open=True, context=info.ts_context))
            )
        return found
