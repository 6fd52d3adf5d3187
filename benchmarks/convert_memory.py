"""Peak memory of conversions: python benchmarks/convert_memory.py [--gigabytes 3] [--whisper DIR --beats FILE]

Makes a synthetic LLaMA directory of that size (bfloat16, in shards), converts it to JAX, back to PyTorch, and with the
given encoders to a whole SALMONN whose trained parts are newly drawn. Each is `launch.convert` in a process of its own;
printed is how far that process' memory went above its start.
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
# Runs in the process that is measured. (getrusage would also count its parent, of before the exec.)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--whisper", metavar="DIR")
    parser.add_argument("--beats", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        llm, model, back, whole, again = (pathlib.Path(folder) / name for name in "abcde")
        print(f"a LLaMA of {make_llama(llm, arguments.gigabytes):.2f} GB, above the interpreter's start:")
        measure_peak_memory("to-jax", "llama", "--llm", llm, "--output", model)
        measure_peak_memory("to-torch", "llama", "--model", model, "--output", back)
        if arguments.whisper and arguments.beats:
            encoders = ["--whisper", arguments.whisper, "--beats", arguments.beats]
            measure_peak_memory("to-jax", "salmonn", *encoders, "--llm", llm, "--output", whole)
        convert_shards_to_bin(llm)
        measure_peak_memory("to-jax", "llama", "--llm", llm, "--output", again, note="from .bin files")


def measure_peak_memory(*words: object, note: str = "") -> None:
    """Runs a conversion and prints its peak."""
    began = time.monotonic()
    command = [sys.executable, "-c", _CHILD, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    peak = float(done.stdout.split("peak ")[1])
    print(f"{' '.join(map(str, words[:2])):16} {peak:.2f} GB, {time.monotonic() - began:.0f} s {note}", flush=True)


def convert_shards_to_bin(directory: pathlib.Path) -> None:
    """Rewrites the shards as torch files, as Vicuna comes."""
    import torch
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for shard in set(places.values()):
        torch.save(load_file(directory / shard), (directory / shard).with_suffix(".bin"))
        (directory / shard).unlink()
    places = {name: str(pathlib.Path(shard).with_suffix(".bin")) for name, shard in places.items()}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    index.unlink()


def make_llama(directory: pathlib.Path, gigabytes: float) -> float:
    """Writes a LLaMA of about that size and returns its size in GB. One shard holds two layers."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir()
    layer = {f"self_attn.{name}_proj.weight": (HIDDEN_SIZE, HIDDEN_SIZE) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": (INTERMEDIATE_SIZE, HIDDEN_SIZE) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": (HIDDEN_SIZE, INTERMEDIATE_SIZE)}
    layer |= {f"{name}_layernorm.weight": (HIDDEN_SIZE,) for name in ("input", "post_attention")}
    ends = {"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN_SIZE), "lm_head.weight": (VOCAB_SIZE, HIDDEN_SIZE)}
    ends |= {"model.norm.weight": (HIDDEN_SIZE,)}
    bytes_of_layer = 2 * sum(torch.Size(shape).numel() for shape in layer.values())
    bytes_of_ends = 2 * sum(torch.Size(shape).numel() for shape in ends.values())
    layers = max(1, round((gigabytes * 1e9 - bytes_of_ends) / bytes_of_layer))
    places = {}
    for first in range(-2, layers, 2):
        shapes = {
            f"model.layers.{i}.{name}": shape
            for i in range(max(first, 0), first + 2)
            if i < layers
            for name, shape in layer.items()
        }
        shapes = ends if first < 0 else shapes
        shard = f"model-{first // 2 + 2:05}.safetensors"
        save_file({name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}, directory / shard)
        places |= dict.fromkeys(shapes, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return (layers * bytes_of_layer + bytes_of_ends) / 1e9


if __name__ == "__main__":
    main()
