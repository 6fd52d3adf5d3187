"""Command line that converts the golden set, and helpers for its SALMONN checkpoint."""

from __future__ import annotations

import pathlib

from salmonn_jax.conversion.formats import tensors
from tests.golden import MINI


def convert_arguments(output, **changes) -> list[str]:
    """Returns the command line that converts the golden set to `output`, with options changed or (None) left out."""
    parts = {
        "--whisper": MINI.directory / "whisper",
        "--beats": MINI.directory / "beats.pt",
        "--llm": MINI.directory / "vicuna",
        "--checkpoint": MINI.directory / "salmonn.pth",
        "--qformer-num-attention-heads": 4,
        "--output": output,
    } | changes
    return ["to-jax", "salmonn", *(str(word) for pair in parts.items() if pair[1] is not None for word in pair)]


def rewritten(path: pathlib.Path, **changes) -> pathlib.Path:
    """Writes the golden checkpoint to `path` with the named entries changed."""
    import torch

    MINI.require()
    loaded = tensors.load_torch(MINI.directory / "salmonn.pth")
    torch.save(loaded | {name: change(loaded[name]) for name, change in changes.items()}, path)
    return path


def checkpoint(path: pathlib.Path) -> dict[str, tensors.LazyTensor]:
    """Opens the tensors of a SALMONN checkpoint."""
    return tensors.lazy_state_dict(tensors.load_torch(path)["model"], path, "model")


def equal_bytes(ours: dict, theirs: dict) -> None:
    """Asserts that two checkpoints hold the same tensors, byte for byte."""
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert ours[name].read().tobytes() == tensor.read().tobytes(), name
