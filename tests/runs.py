"""Helpers for tests of training runs: the debug configuration, logged losses, copies of runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

from salmonn_jax.config import RunConfig
from salmonn_jax.configs import get_config


def debug_config(data_dir: pathlib.Path, **changes: Any) -> RunConfig:
    """Returns the `debug` configuration with its corpus in `data_dir` and with `changes` of other fields."""
    config = get_config("debug")
    data = dataclasses.replace(config.data, data_dir=str(data_dir))
    return dataclasses.replace(config, data=data, **changes)


def losses(run: pathlib.Path) -> dict[int, tuple[float, float]]:
    """Returns (loss, gradient norm) of each logged step. Fails if a step is logged twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines}


def copy_run(run: pathlib.Path, copy: pathlib.Path, *, last_step: int) -> pathlib.Path:
    """Copies a run without its checkpoints after `last_step`, and returns the path of the copy."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name.isdecimal() and int(checkpoint.name) > last_step:
            shutil.rmtree(checkpoint)
    return copy
