"""Every test runs on eight fake CPU devices, offline, at the highest matrix multiplication precision."""

from __future__ import annotations

import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "xla"))

import jax

jax.config.update("jax_default_matmul_precision", "highest")

# Files that take longest, to be begun first: a worker takes whole files, and the last one should not run alone.
SLOW_FILES = ("test_distributed", "test_oracles", "test_step", "test_train", "test_api", "test_plan", "test_golden")


def pytest_collection_modifyitems(items):
    def sort_key(item) -> int:
        return SLOW_FILES.index(item.path.stem) if item.path.stem in SLOW_FILES else len(SLOW_FILES)

    items.sort(key=sort_key)
