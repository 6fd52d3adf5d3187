"""Tensors of PyTorch checkpoints, read one at a time: safetensors, torch files, Hugging Face directories."""

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
    """A tensor that is read when it is wanted."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


LazyStateDict = Mapping[str, LazyTensor]


def open_hf_directory(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Opens a Hugging Face model directory: its `config.json` and the tensors of all its shards.

    Raises:
      UserError: a file that is missing, cut short or of another kind.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; name one as Hugging Face transformers saves it")
    config = read_json(directory / "config.json")
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if index.is_file():
            return config, _open_shards(directory, read_json(index))
        if (directory / name).is_file():
            return config, open_state_dict(directory / name)
    raise UserError(
        f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of one"
    )


def _open_shards(directory: pathlib.Path, index: dict[str, Any]) -> dict[str, LazyTensor]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"the index of the shards in {directory} has no weight_map")
    missing = sorted({shard for shard in places.values() if not (directory / shard).is_file()})
    if missing:
        raise UserError(f"{directory} lacks {len(missing)} shard(s) of its index: {', '.join(missing)}")
    found: dict[str, LazyTensor] = {}
    wrong = []
    for shard in sorted(set(places.values())):
        opened = open_state_dict(directory / shard)
        wrong += [f"{name} is in {shard} and in another shard" for name in opened if name in found]
        wrong += [f"{name} is not in {shard}" for name, of in places.items() if of == shard and name not in opened]
        found |= opened
    if wrong:
        raise UserError(f"the shards in {directory} are not what their index says: {summarize_by_layer(wrong)}")
    return found


def summarize_by_layer(messages: Sequence[str]) -> str:
    """Names of tensors with what is said of them, those that differ in the number of a layer told as one."""
    groups: dict[str, list[str]] = {}
    for thing in messages:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", thing), []).append(thing)
    return "; ".join(of[0] if len(of) == 1 else f"{pattern} ({len(of)} times)" for pattern, of in groups.items())


def open_state_dict(path: pathlib.Path) -> dict[str, LazyTensor]:
    """Opens a file of tensors by name. Raises UserError if it is missing, cut short or holds something else."""
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return lazy_state_dict(load_torch(path), path)


def lazy_state_dict(state_dict: Any, path: pathlib.Path, *keys: str) -> dict[str, LazyTensor]:
    """The tensors of a loaded torch state dict, which lies in the file `path` under the keys `inside`.

    Raises:
      UserError: it is no state dict, or holds tensors of a dtype that cannot be converted.
    """
    torch = import_optional("torch", "convert")
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise UserError(f"{path} is not a dictionary of tensors; `inspect` tells what it is")
    mapped = zipfile.is_zipfile(path)
    found = {}
    for name, value in state_dict.items():
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in _TORCH_DTYPES:
            raise UserError(f"{path}: {name} is of dtype {kind}, which cannot be converted")
        # Opened anew for each tensor: pages of a file that stays mapped count as memory until the end.
        read = (
            functools.partial(_read_torch_tensor, path, (*keys, name))
            if mapped
            else functools.partial(_to_numpy, value)
        )
        found[name] = LazyTensor(tuple(value.shape), _TORCH_DTYPES[kind], read)
    return found


def load_torch(path: pathlib.Path) -> Any:
    """Opens a torch file, its tensors mapped from disk where the format allows it.

    Raises:
      UserError: it is missing, cut short, not a torch file, or needs code to be run.
    """
    torch = import_optional("torch", "convert")
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{path} asks for {wanted[1]} to be run; only files of plain tensors are opened. Save its state dict "
                "alone, where you trust the file"
            ) from None
        raise UserError(f"{path} is not a torch file, or is damaged") from None
    except Exception as error:  # what the unpickler makes of other files is of any kind
        why = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{path} is cut short or not a torch file ({why})") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if it is missing or damaged."""
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
    found = load_torch(path)
    for key in keys:
        found = found[key]
    return _to_numpy(found)


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # which numpy does not know
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _open_safetensors(path: pathlib.Path) -> dict[str, LazyTensor]:
    safetensors = import_optional("safetensors", "convert")
    if not path.is_file():
        raise UserError(f"there is no file {path}")

    def read(name: str) -> np.ndarray:
        # Opened anew for each tensor: pages of a file that stays mapped count as memory until the end.
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    found = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise UserError(f"{path}: {name} is of dtype {part.get_dtype()}, which cannot be converted")
                found[name] = LazyTensor(tuple(part.get_shape()), dtype, functools.partial(read, name))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or not a safetensors file ({error})") from None
    return found
