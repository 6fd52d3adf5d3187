"""Manifest, options and helpers of the tests of `launch.evaluate`."""

from __future__ import annotations

import json
import pathlib

GREEDY = ("--num-beams", "1", "--max-new-tokens", "4", "--batch-size", "8")  # one compiled program for most tests
SOUNDS = [
    {"id": f"s{k}", "audio": f"{k}.wav", "answer": answer, "task": "sound", "prompt": "What sound is this?"}
    for k, answer in enumerate(("rain", "bell", "dog", "wind"))
]


def write(path: pathlib.Path, lines: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def bytes_of(output: pathlib.Path) -> bytes:
    return (output / "predictions.jsonl").read_bytes()
