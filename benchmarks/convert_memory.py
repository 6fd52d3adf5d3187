"""Measure peak memory of conversions: python benchmarks/convert_memory.py [--gigabytes 3] [--whisper DIR --beats FILE]

Makes a synthetic LLaMA of this size (bfloat16, in shards), converts it to JAX and back to PyTorch, and, if the encoders
are given, to a whole SALMONN without a checkpoint. Each conversion is `launch.convert` in its own process. Prints the
peak memory of the process minus the memory at its start.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HIDDEN_SIZE, INTERMEDIATE_SIZE, VOCAB_SIZE = 2048, 5632, 32_000
# Code of the measured process. It reads VmHWM because getrusage would include the parent process before exec.
_CHILD = """
import pathlib, re, sys

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

start = peak()
from launch import convert
convert.main(sys.argv[1:])
print("peak", (peak() - start) / 1e9)
"""


def main() -> None:
    """Parses the command line and measures all conversions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the LLaMA (default: %(default)s)")
    parser.add_argument("--whisper", metavar="DIR", help="Hugging Face directory or OpenAI .pt file")
    parser.add_argument("--beats", metavar="FILE", help="BEATs .pt file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = ("llm", "model", "torch", "salmonn", "from_bin")
        llm, model, torch_dir, salmonn_dir, from_bin_dir = (pathlib.Path(folder) / name for name in names)
        print(f"LLaMA of {make_llama(llm, arguments.gigabytes):.2f} GB; peak memory minus memory at the start:")
        measure_peak_memory("to-jax", "llama", "--llm", llm, "--output", model)
        measure_peak_memory("to-torch", "llama", "--model", model, "--output", torch_dir)
        if arguments.whisper and arguments.beats:
            encoders = ["--whisper", arguments.whisper, "--beats", arguments.beats]
            measure_peak_memory("to-jax", "salmonn", *encoders, "--llm", llm, "--output", salmonn_dir)
        convert_shards_to_bin(llm)
        measure_peak_memory("to-jax", "llama", "--llm", llm, "--output", from_bin_dir, note="from .bin files")


def measure_peak_memory(*arguments: object, note: str = "") -> None:
    """Runs `launch.convert` with these arguments and prints its peak memory and time."""
    start = time.monotonic()
    command = [sys.executable, "-c", _CHILD, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(process.stderr)
    peak = float(process.stdout.split("peak ")[1])
    name = " ".join(map(str, arguments[:2]))
    print(f"{name:16} {peak:.2f} GB, {time.monotonic() - start:.0f} s {note}", flush=True)


def convert_shards_to_bin(directory: pathlib.Path) -> None:
    """Replaces the safetensors shards by torch files, the format in which Vicuna is distributed."""
    import torch
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    for shard in set(weight_map.values()):
        torch.save(load_file(directory / shard), (directory / shard).with_suffix(".bin"))
        (directory / shard).unlink()
    weight_map = {name: str(pathlib.Path(shard).with_suffix(".bin")) for name, shard in weight_map.items()}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    index.unlink()


def make_llama(directory: pathlib.Path, gigabytes: float) -> float:
    """Writes a LLaMA of about `gigabytes` GB and returns its size in GB. A shard holds two layers."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir()
    layer = {f"self_attn.{name}_proj.weight": (HIDDEN_SIZE, HIDDEN_SIZE) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": (INTERMEDIATE_SIZE, HIDDEN_SIZE) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": (HIDDEN_SIZE, INTERMEDIATE_SIZE)}
    layer |= {f"{name}_layernorm.weight": (HIDDEN_SIZE,) for name in ("input", "post_attention")}
    non_layer_shapes = {
        "model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN_SIZE),
        "lm_head.weight": (VOCAB_SIZE, HIDDEN_SIZE),
    }
    non_layer_shapes |= {"model.norm.weight": (HIDDEN_SIZE,)}
    layer_bytes = 2 * sum(torch.Size(shape).numel() for shape in layer.values())
    non_layer_bytes = 2 * sum(torch.Size(shape).numel() for shape in non_layer_shapes.values())
    num_layers = max(1, round((gigabytes * 1e9 - non_layer_bytes) / layer_bytes))
    weight_map = {}
    for first in range(-2, num_layers, 2):
        shapes = {
            f"model.layers.{i}.{name}": shape
            for i in range(max(first, 0), first + 2)
            if i < num_layers
            for name, shape in layer.items()
        }
        shapes = non_layer_shapes if first < 0 else shapes
        shard = f"model-{first // 2 + 2:05}.safetensors"
        save_file({name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}, directory / shard)
        weight_map |= dict.fromkeys(shapes, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return (num_layers * layer_bytes + non_layer_bytes) / 1e9


if __name__ == "__main__":
    main()
