"""safetensors files written one tensor at a time; the package wants all of a file in memory.

The format: the length of a header in 8 bytes, the header in JSON (for each tensor its dtype, shape and place), and the
tensors' bytes one after the other, row-major and little-endian.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from salmonn_jax.conversion.tensors import SAFETENSORS_DTYPES

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class PendingTensor:
    """A tensor that is made when it is its turn to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    compute: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    path: pathlib.Path, tensors: Mapping[str, PendingTensor], on_write: Callable[[int], object] = lambda count: None
) -> None:
    """Writes a file of these tensors; `written` is called with the bytes of each."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        places = [place, place + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
        place += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight, as the package lays them
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            value = np.ascontiguousarray(tensor.compute())
            if value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise ValueError(f"{name} is {value.dtype}{value.shape}, not {tensor.dtype}{tensor.shape}")
            file.write(value.reshape(-1).view(np.uint8).data)
            on_write(value.nbytes)
