"""Writer of safetensors files that holds one tensor in memory at a time. The safetensors package needs all of them.

A file consists of the header's length in 8 bytes, the JSON header (dtype, shape and byte offsets of each tensor), and
the bytes of the tensors in row-major order, little-endian.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from salmonn_jax.conversion.formats.tensors import SAFETENSORS_DTYPES

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class PendingTensor:
    """Tensor whose values are computed when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    compute: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Returns the size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    path: pathlib.Path, tensors: Mapping[str, PendingTensor], on_write: Callable[[int], object] = lambda count: None
) -> None:
    """Writes a safetensors file.

    Args:
      path: the file.
      tensors: tensors by name, in the order in which they are stored.
      on_write: called with the number of bytes after each tensor.

    Raises:
      ValueError: a computed array does not have the declared shape and dtype.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        offsets = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the package, too, aligns the first tensor to eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            value = np.ascontiguousarray(tensor.compute())
            if value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise ValueError(f"{name} is {value.dtype}{value.shape}, not {tensor.dtype}{tensor.shape}")
            file.write(value.reshape(-1).view(np.uint8).data)
            on_write(value.nbytes)
