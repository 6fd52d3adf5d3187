"""Reading and writing of parameters as Orbax checkpoints, and their fingerprint.

`save` writes parameters that are in memory. `save_streamed` writes parameters that are produced piece by piece, so that
conversion needs little memory. The fingerprint is a hash that identifies the parameters.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import math
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
from salmonn_jax.paths import Path, absolute
from salmonn_jax.sharding import LOCAL

_CHUNK_BYTES = 4 << 20  # maximum chunk on disk, the unit in which a device reads its shard


class StoredParam:
    """A parameter on disk that can be read layer by layer. It implements `StreamedParam`."""

    def __init__(self, store: tensorstore.TensorStore):
        self._store = store
        self.shape, self.dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)
        self.stacked = len(self.shape) > 2

    def read(self, layer: int | None = None) -> np.ndarray:
        """Reads one index of the leading axis, or the whole parameter if `layer` is None."""
        return (self._store if layer is None else self._store[layer]).read().result()

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields the pieces of the parameter, see `StreamedParam`."""
        for layer in range(self.shape[0]) if self.stacked else (None,):
            yield layer, self.read(layer)


class StreamedParam(Protocol):
    """A parameter that `save_streamed` writes piece by piece."""

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool  # whether the leading axis is the layer axis

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields (layer, array) for each layer in order if `stacked`, else (None, array) once."""
        ...


def save(path: Path, params: Params) -> str:
    """Writes parameters and returns their fingerprint. Every process calls it and writes its own shards.

    The write is atomic: `path` appears when all parameters are written. The fingerprint is computed from the files.
    """
    with convert_disk_errors(path), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(absolute(path), unflatten_params(params), force=True)
    return fingerprint_checkpoint(path)


def save_streamed(
    path: Path, params: Mapping[str, StreamedParam], on_write: Callable[[int], object] = lambda count: None
) -> str:
    """Writes parameters with only one piece in memory at a time, and returns their fingerprint.

    Unlike `save`, a single process calls it, and the others do not wait for it.

    Args:
      path: path of the checkpoint.
      params: parameters by path.
      on_write: called with the number of bytes of each chunk that was written.
    """
    writer = _StreamWriter(on_write)
    registry = ocp.type_handlers.create_type_handler_registry((_Leaf, writer))
    tree = unflatten_params({name: _Leaf(name, value) for name, value in params.items()})
    save_args = ocp.args.PyTreeSave(tree, save_args=jax.tree.map(_save_args, tree, is_leaf=_is_leaf))
    single_process = _single_process("streamed")
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, multiprocessing_options=single_process)
    with convert_disk_errors(path), ocp.Checkpointer(handler, multiprocessing_options=single_process) as checkpointer:
        checkpointer.save(absolute(path), args=save_args, force=True)
    return _combine_digests(writer.digests)


def load(path: Path, placement: Callable[[str, jax.ShapeDtypeStruct], jax.ShapeDtypeStruct] = LOCAL) -> Params:
    """Reads parameters that `save`, `save_streamed` or a training checkpoint wrote.

    Args:
      path: path of the checkpoint.
      placement: returns the dtype and sharding of a parameter, given its path and its shape and dtype on disk. Each
        device reads its own shard. By default parameters keep their dtype and go to the first device of this host.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        saved = flatten_params(dict(checkpointer.metadata(absolute(path)).item_metadata))
    target = {name: placement(name, jax.ShapeDtypeStruct(x.shape, x.dtype)) for name, x in saved.items()}
    # Limits how much is read concurrently, to save host memory. By default Orbax reads all parameters at once.
    shard_bytes = (
        math.prod(x.sharding.shard_shape(x.shape)) * saved[name].dtype.itemsize for name, x in target.items()
    )
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=1 + max(shard_bytes, default=0) // 2**30)
    tree = unflatten_params(target)
    restore_args = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    with ocp.Checkpointer(handler) as checkpointer:
        return flatten_params(checkpointer.restore(absolute(path), args=restore_args))


def open_params(path: Path) -> dict[str, StoredParam]:
    """Opens a checkpoint without reading it. The returned parameters can be read piece by piece.

    Unlike `load`, it does not wait for other processes.
    """
    return flatten_params(_open_arrays(path))


def _open_arrays(path: Path) -> Any:
    """Returns the tree of a checkpoint with a `StoredParam` in place of each array."""
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, _StreamReader()))
    single_process = _single_process("opened")
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, multiprocessing_options=single_process)
    with ocp.Checkpointer(handler, multiprocessing_options=single_process) as checkpointer:
        return checkpointer.restore(absolute(path))


def _single_process(barrier_prefix: str) -> ocp.options.MultiprocessingOptions:
    """Returns the options of a checkpointer in this process that does not wait for other processes."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=barrier_prefix
    )


def read_all(path: Path) -> None:
    """Reads all arrays of a checkpoint, one piece at a time, and drops them. Raises an error if one is not readable."""
    for array in jax.tree.leaves(_open_arrays(path)):
        for _ in array.pieces():
            pass


def unflatten_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Converts parameters by path to the nested dictionary that Orbax stores."""
    return traverse_util.unflatten_dict(params, sep="/")


def flatten_params(tree: Any) -> dict[str, Any]:
    """Converts a nested dictionary to parameters by path; the inverse of `unflatten_params`."""
    return traverse_util.flatten_dict(tree, sep="/")


def fingerprint(params: Params) -> str:
    """Returns a hash of paths, shapes, dtypes and values, which does not depend on order or sharding."""
    return _combine_digests({path: _param_digest(path, x, [np.asarray(x)]) for path, x in params.items()})


def fingerprint_checkpoint(path: Path, dtype: str | None = None) -> str:
    """Returns the fingerprint of parameters on disk, with one piece in memory at a time.

    Args:
      path: path of the checkpoint.
      dtype: dtype to which the parameters are converted; None for the dtypes on disk.
    """
    digests = {}
    for name, param in open_params(path).items():
        target = np.dtype(dtype or param.dtype)
        pieces = (piece.astype(target, copy=False) for _, piece in param.pieces())
        digests[name] = _param_digest(name, jax.ShapeDtypeStruct(param.shape, target), pieces)
    return _combine_digests(digests)


def _param_digest(path: str, value: Any, pieces: Iterable[np.ndarray]) -> str:
    """Returns the hash of one parameter: its path, shape, dtype, and the bytes of its pieces in C order."""
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
    """Leaf of the tree that `save_streamed` saves. Orbax selects the type handler by the type of a leaf."""

    def __init__(self, path: str, value: StreamedParam):
        self.path, self.value = path, value


def _is_leaf(x: Any) -> bool:
    return isinstance(x, _Leaf)


def _release_freed_memory() -> None:
    """Returns freed memory to the operating system; glibc would keep it for each of tensorstore's threads."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # other C libraries do not have it
        trim(0)


def _chunk_slices(size: int, chunk_size: int) -> list[slice]:
    return [slice(start, min(start + chunk_size, size)) for start in range(0, size, chunk_size)]


def _save_args(leaf: _Leaf) -> ocp.SaveArgs:
    """Returns save arguments that limit chunks to one layer, so that a piece consists of whole chunks."""
    if not leaf.value.stacked:
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
    layer_bytes = math.prod(leaf.value.shape[1:]) * leaf.value.dtype.itemsize
    return ocp.SaveArgs(chunk_byte_size=max(1, min(layer_bytes, _CHUNK_BYTES)), shard_axes=(0,))


class _StreamWriter(ocp.type_handlers.TypeHandler):
    """Orbax type handler that writes `_Leaf`s piece by piece, in the format of Orbax's own arrays."""

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
                target = store if layer is None else store[layer]
                chunk_shape = store.chunk_layout.write_chunk.shape[len(value.shape) - piece.ndim :]
                # Chunks are written one at a time: a whole piece would need as much memory again for its encoding.
                for chunk_slice in itertools.product(*map(_chunk_slices, piece.shape, chunk_shape)):
                    # The piece is not modified later, so tensorstore need not copy it.
                    await target[chunk_slice].write(piece[chunk_slice], can_reference_source_data_indefinitely=True)
                    self._on_write(piece[chunk_slice].nbytes)
            self.digests[leaf.path] = digest.hexdigest()
            _release_freed_memory()
        return []

    async def metadata(self, infos):
        raise NotImplementedError("this handler only writes; Orbax's own handlers read streamed parameters")

    async def deserialize(self, infos, args=None):
        raise NotImplementedError("this handler only writes; Orbax's own handlers read streamed parameters")


class _StreamReader(ocp.type_handlers.TypeHandler):
    """Orbax type handler that opens arrays as `StoredParam`s instead of reading them."""

    _array_metadata_store = None  # Orbax warns about a handler that does not have this attribute

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(self, values, infos, args=None):
        raise NotImplementedError("this handler only reads")

    async def metadata(self, infos):
        raise NotImplementedError("this handler only opens arrays; Orbax's own handlers read their metadata")

    async def deserialize(self, infos, args=None):
        params = []
        for info in infos:
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=info.is_ocdbt_checkpoint)
            params.append(
                StoredParam(await tensorstore.open(tensorstore.Spec(spec), open=True, context=info.ts_context))
            )
        return params
