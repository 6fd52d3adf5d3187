"""`launch.forgetting sweep`: one model, several LoRA multipliers."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import soundfile
import yaml

from launch import cli, forgetting
from salmonn_jax.evaluation import settings
from tests.launch.evaluations import GREEDY, SOUNDS, write

ALL = ("--multipliers", "0", "0.5", "1")


@pytest.fixture
def manifest(tmp_path):
    """Four clips, and a question without a clip."""
    for k in range(4):
        samples = np.random.default_rng(k).integers(-9000, 9000, 8000).astype(np.int16)
        soundfile.write(tmp_path / f"{k}.wav", samples, 16_000)
    return write(tmp_path / "test.jsonl", [*SOUNDS, {"id": "t", "prompt": "Which tone?", "answer": "low"}])


@pytest.fixture
def sweep(debug_run, manifest, tmp_path, monkeypatch):
    """Returns a function that runs the sweep with the debug run and returns its exit code."""

    def run(*words: str) -> int:
        paths = ["--model", debug_run, "--manifest", manifest, "--output", tmp_path / "out", "--no-preflight"]
        monkeypatch.setattr(sys, "argv", ["launch.forgetting", "sweep", *map(str, paths), *words])
        try:
            cli.run(forgetting.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def test_a_sweep_and_its_report(sweep, tmp_path, monkeypatch):
    load, models = settings.load_evaluated, []

    def load_and_keep(*arguments):
        models.append(load(*arguments))
        return models[-1]

    monkeypatch.setattr(settings, "load_evaluated", load_and_keep)
    assert sweep(*GREEDY, *ALL) == 0
    (model,) = models
    # One bucket: with and without clips one program for prompts each, and one for decoding; another one for 0.
    assert model.num_compilations == 2 + 2
    scores = {}
    for name in ("0", "0.5", "1"):
        lines = (tmp_path / "out" / f"multiplier-{name}" / "predictions.jsonl").read_text().splitlines()
        scores[name] = {line["id"]: line["score"] for line in map(json.loads, lines)}
        assert len(lines) == 5
    assert len({scores[name]["s0"] for name in scores}) == 3
    stages = yaml.safe_load((tmp_path / "out" / "forgetting.yml").read_text())["stages"]
    assert [stage.get("after") for stage in stages] == [None, "multiplier 0", "multiplier 0"]
    forgetting.main(["report", str(tmp_path / "out" / "forgetting.yml"), "--output", str(tmp_path / "report")])
    report = json.loads((tmp_path / "report" / "forgetting.json").read_text())
    assert report["stages"] == ["multiplier 0", "multiplier 0.5", "multiplier 1"]
    assert {task["channel"] for task in report["tasks"]} == {"text to text", "speech to text"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--multipliers", "-1"], "must be a number from 0 to 1000000"),
        (["--multipliers", "x"], "'x': must be a number"),
        (["--lora-multiplier", "0.5"], "--lora-multiplier has no effect in a sweep; use --multipliers"),
    ],
)
def test_bad_input_is_one_line(sweep, tmp_path, capsys, words, message):
    assert sweep(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
