"""Measure merging of two runs of a 13B model: python benchmarks/merge.py [--methods linear ties ...] [--layers 40]

Makes two runs with random deltas of 0.4 GB: the SALMONN-13B of the paper, whose adapters have rank 8 on the query and
value projections of 40 layers, with a Q-Former of eight layers. Frozen weights are left out, because merging reads none
of them here. Each merge is `launch.merge` in its own process. Prints its time and its peak memory minus the memory at
the start. Other methods than weighted sums compute the product of each adapter, 5120 x 5120, and recompress it to
rank 8.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

TOKENIZER = pathlib.Path(__file__).parents[1] / "tests" / "salmonn_mini_golden" / "vicuna"  # any: nothing is encoded
_CHILD = """
import pathlib, re, sys

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

start = peak()
from launch import cli, merge
cli.run(merge.main)
print("peak", (peak() - start) / 1e9)
"""
# (name, method, parameters, options) of each measured merge.
MERGES = (
    ("linear", "linear", {"weight": 0.5}, []),
    ("task_arithmetic", "task_arithmetic", {"weight": 0.5}, []),
    ("linear-svd", "linear", {"weight": 0.5}, ["--lora", "svd"]),
    ("ties", "ties", {"weight": 0.5, "density": 0.2}, ["--lora", "svd"]),
    ("dare_linear", "dare_linear", {"weight": 0.5, "density": 0.5}, ["--lora", "svd"]),
)


def main() -> None:
    """Parses the command line and measures the merges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, *_ in MERGES]
    parser.add_argument("--methods", nargs="+", choices=names, default=names, help="merges (default: all)")
    parser.add_argument("--layers", type=int, default=40, help="layers of the language model (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(pathlib.Path(folder), arguments.layers)
        for name, method, parameters, options in MERGES:
            if name in arguments.methods:
                measure(pathlib.Path(folder), name, runs, method, parameters, options)


def make_runs(folder: pathlib.Path, num_layers: int) -> list[pathlib.Path]:
    """Writes two models with one base and returns their directories.

    Args:
      folder: directory in which they are made.
      num_layers: layers of the language model.
    """
    from salmonn_jax import model_directory, weights
    from salmonn_jax.configs import get_preset
    from salmonn_jax.models import parameters
    from salmonn_jax.paths import as_path

    preset = get_preset("salmonn_13b_stage2")
    config = dataclasses.replace(
        preset.model,
        qformer=dataclasses.replace(preset.model.qformer, num_hidden_layers=8),
        llama=dataclasses.replace(preset.model.llama, num_hidden_layers=num_layers),
    )
    shapes = parameters.model_structure(config).shapes
    trained = {path: shapes[path].shape for path in parameters.trainable_paths(shapes, preset.recipe.trainable)}
    size = 4 * sum(math.prod(shape) for shape in trained.values())
    print(f"deltas of {size / 1e9:.2f} GB, {num_layers} layers", flush=True)
    rng = np.random.default_rng(0)

    def random_params(scale: float) -> dict:
        import jax.numpy as jnp

        return {path: jnp.asarray(scale * rng.standard_normal(shape, np.float32)) for path, shape in trained.items()}

    start = random_params(0.02)
    start = {path: 0 * value if path.endswith("lora_b") else value for path, value in start.items()}
    base = model_directory.save_base(as_path(folder), start)
    runs = []
    for name in ("one", "two"):
        run = as_path(folder / name)
        weights.save(run / "delta", {path: start[path] + change for path, change in random_params(0.002).items()})
        model_directory.write_config_and_tokenizer(run, config, base, TOKENIZER)
        runs.append(run)
    return runs


def measure(
    folder: pathlib.Path, name: str, runs: list[pathlib.Path], method: str, parameters: dict, options: list[str]
) -> None:
    """Runs `launch.merge` and prints its time and peak memory."""
    recipe = {"merge_method": method, "models": [{"model": str(run)} for run in runs], "parameters": parameters}
    (folder / f"{name}.yml").write_text(json.dumps(recipe))  # JSON is YAML
    command = [sys.executable, "-c", _CHILD, str(folder / f"{name}.yml"), str(folder / f"merged-{name}"), *options]
    start = time.monotonic()
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(process.stdout + process.stderr)
    peak = float(process.stdout.split("peak ")[1])
    error = next((line for line in process.stdout.splitlines() if "recompression" in line), "")
    print(f"{name}: {time.monotonic() - start:.0f} s, {peak:.2f} GB{';' if error else ''}{error}", flush=True)


if __name__ == "__main__":
    main()
