"""Readers of PyTorch checkpoints: safetensors, torch files and Hugging Face directories. Tensors are read on demand."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from salmonn_jax.errors import UserError, import_optional
from salmonn_jax.files import refuse_lfs_pointer

SAFETENSORS_DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_TORCH_DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8")},
    "bool": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """Tensor of a checkpoint whose values are read from disk by `read`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


LazyStateDict = Mapping[str, LazyTensor]


def open_hf_directory(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Opens a Hugging Face model directory.

    Returns:
      The contents of `config.json`, and the tensors of all shards by name.

    Raises:
      UserError: a file is missing, truncated or of another kind.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give a model directory as Hugging Face transformers saves it")
    config = read_json(directory / "config.json")
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if index.is_file():
            return config, _open_shards(directory, read_json(index))
        if (directory / name).is_file():
            return config, open_state_dict(directory / name)
    raise UserError(
        f"{directory} holds no weights: expected model.safetensors, pytorch_model.bin, or an index of one of them"
    )


def _open_shards(directory: pathlib.Path, index: dict[str, Any]) -> dict[str, LazyTensor]:
    """Opens all shards that an index names, and checks that each tensor is in the shard that the index says."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"the index of the shards in {directory} has no weight_map")
    missing = sorted({shard for shard in weight_map.values() if not (directory / shard).is_file()})
    if missing:
        raise UserError(f"{directory} lacks {len(missing)} shard(s) of its index: {', '.join(missing)}")
    state_dict: dict[str, LazyTensor] = {}
    mismatches = []
    for shard in sorted(set(weight_map.values())):
        shard_tensors = open_state_dict(directory / shard)
        expected = [name for name, its_shard in weight_map.items() if its_shard == shard]
        mismatches += [f"{name} is in {shard} and in another shard" for name in shard_tensors if name in state_dict]
        mismatches += [f"{name} is not in {shard}" for name in expected if name not in shard_tensors]
        state_dict |= shard_tensors
    if mismatches:
        raise UserError(f"the shards in {directory} do not match their index: {summarize_by_layer(mismatches)}")
    return state_dict


def summarize_by_layer(messages: Sequence[str]) -> str:
    """Joins messages about tensors into one line. Messages that differ only in a layer number become one."""
    groups: dict[str, list[str]] = {}
    for message in messages:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", message), []).append(message)
    return "; ".join(
        group[0] if len(group) == 1 else f"{pattern} ({len(group)} times)" for pattern, group in groups.items()
    )


def open_state_dict(path: pathlib.Path) -> dict[str, LazyTensor]:
    """Opens a file of named tensors. Raises UserError if it is missing, truncated or holds something else."""
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return lazy_state_dict(load_torch(path), path)


def lazy_state_dict(state_dict: Any, path: pathlib.Path, *keys: str) -> dict[str, LazyTensor]:
    """Returns the tensors of a torch state dict by name.

    Args:
      state_dict: the state dict, as `load_torch` returned it.
      path: the file from which it was loaded.
      *keys: keys that lead to the state dict inside the file.

    Raises:
      UserError: it is not a state dict, or a dtype cannot be converted.
    """
    torch = import_optional("torch", "convert")
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise UserError(f"{path} is not a dictionary of tensors; see its contents with `launch.convert inspect`")
    memory_mapped = zipfile.is_zipfile(path)
    tensors = {}
    for name, value in state_dict.items():
        dtype_name = str(value.dtype).removeprefix("torch.")
        if dtype_name not in _TORCH_DTYPES:
            raise UserError(f"{path}: {name} has dtype {dtype_name}, which cannot be converted")
        # The file is opened again for each tensor: pages of a file that stays mapped count as used memory.
        read = (
            functools.partial(_read_torch_tensor, path, (*keys, name))
            if memory_mapped
            else functools.partial(_to_numpy, value)
        )
        tensors[name] = LazyTensor(tuple(value.shape), _TORCH_DTYPES[dtype_name], read)
    return tensors


def load_torch(path: pathlib.Path) -> Any:
    """Loads a torch file. Its tensors are memory-mapped if the file has the format of torch 1.6 or later.

    Raises:
      UserError: the file is missing, truncated, not a torch file, or would run code when loaded.
    """
    torch = import_optional("torch", "convert")
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    refuse_lfs_pointer(path)
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # format before torch 1.6
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise UserError(
                f"{path} would run {code[1]}; only files of plain tensors are opened. If you trust the file, load it "
                "with torch and save its state dict alone"
            ) from None
        raise UserError(f"{path} is not a torch file, or is damaged") from None
    except Exception as error:  # on other files the unpickler raises exceptions of any type
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{path} is truncated or not a torch file ({reason})") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises UserError if the file is missing or damaged."""
    refuse_lfs_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def _read_torch_tensor(path: pathlib.Path, keys: tuple[str, ...]) -> np.ndarray:
    """Reads one tensor of a torch file. `keys` lead to it, its name last."""
    value = load_torch(path)
    for key in keys:
        value = value[key]
    return _to_numpy(value)


def _to_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor as a numpy array of the same dtype."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # torch cannot convert bfloat16 to numpy
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _open_safetensors(path: pathlib.Path) -> dict[str, LazyTensor]:
    """Opens a safetensors file."""
    refuse_lfs_pointer(path)
    safetensors = import_optional("safetensors", "convert")
    if not path.is_file():
        raise UserError(f"there is no file {path}")

    def read(name: str) -> np.ndarray:
        # The file is opened again for each tensor: pages of a file that stays mapped count as used memory.
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (`file` is not a mapping)
                tensor = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(tensor.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: {name} has dtype {tensor.get_dtype()}, which cannot be converted")
                tensors[name] = LazyTensor(tuple(tensor.get_shape()), dtype, functools.partial(read, name))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None
    return tensors
