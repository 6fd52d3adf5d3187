"""Device files of accelerators. Does not import JAX, so that commands can call it before they import JAX."""

from __future__ import annotations

import os
import pathlib

# Patterns below /dev.
TPU_DEVICES, GPU_DEVICES = ("accel[0-9]*", "vfio/[0-9]*"), ("nvidia[0-9]*", "kfd")


def has_device(*patterns: str) -> bool:
    """Returns whether a device file matches one of the patterns."""
    return any(True for pattern in patterns for _ in pathlib.Path("/dev").glob(pattern))


def use_cpu_without_accelerator() -> None:
    """Sets JAX_PLATFORMS to cpu on a machine without a TPU or GPU, unless it is set. JAX must not be imported yet.

    Otherwise an installed libtpu looks for a TPU and prints several lines about not finding one.
    """
    if not has_device(*TPU_DEVICES, *GPU_DEVICES):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
