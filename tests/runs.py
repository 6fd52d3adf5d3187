"""Helpers for tests of training runs: the debug preset, logged losses, copies of runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

from salmonn_jax.configs import get_preset
from salmonn_jax.configs.preset import Preset


def debug_preset(data_dir: pathlib.Path, **changes: Any) -> Preset:
    """Returns the preset `debug` with its corpus in `data_dir` and with `changes` of other fields of its recipe."""
    preset = get_preset("debug")
    data = dataclasses.replace(preset.recipe.data, data_dir=str(data_dir))
    return dataclasses.replace(preset, recipe=dataclasses.replace(preset.recipe, data=data, **changes))


def step_metrics(run: pathlib.Path) -> dict[int, dict[str, float]]:
    """Returns the logged metrics of each step. Fails if a step is logged twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line.pop("step"): line for line in lines if "loss" in line}
    assert len(steps) == sum("loss" in line for line in lines)
    return steps


def losses(run: pathlib.Path) -> dict[int, tuple[float, float]]:
    """Returns (loss, gradient norm) of each logged step. Fails if a step is logged twice."""
    return {step: (metrics["loss"], metrics["gradient_norm"]) for step, metrics in step_metrics(run).items()}


def evaluations(run: pathlib.Path) -> dict[int, dict[str, float]]:
    """Returns the logged values of each held-out evaluation. Fails if one is logged twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line.pop("step"): line for line in lines if "eval/loss" in line}
    assert len(found) == sum("eval/loss" in line for line in lines)
    return {
        step: {name: value for name, value in line.items() if name != "eval/seconds"} for step, line in found.items()
    }


def shares(run: pathlib.Path) -> dict[int, dict[str, float]]:
    """Returns the realised shares of the sources of each logged step, by metric name."""
    return {
        step: {name: value for name, value in metrics.items() if name.startswith("share/")}
        for step, metrics in step_metrics(run).items()
    }


def copy_run(run: pathlib.Path, copy: pathlib.Path, *, last_step: int) -> pathlib.Path:
    """Copies a run without its checkpoints after `last_step`, and returns the path of the copy."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name.isdecimal() and int(checkpoint.name) > last_step:
            shutil.rmtree(checkpoint)
    return copy
