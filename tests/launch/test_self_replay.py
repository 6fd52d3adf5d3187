"""`launch.prepare self-replay`: answers of the language model without its adapters."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import soundfile

import salmonn_jax
from launch import cli, prepare
from salmonn_jax.model_directory import open_model
from tests.evaluation.stub import StubAnswer, StubModel
from tests.launch.evaluations import write


class Writer(StubModel):
    """Answers prompts by what they say. Records the LoRA multipliers it gets."""

    def __init__(self, fingerprint: str):
        super().__init__()
        self.fingerprint, self.multipliers = fingerprint, set()

    def answer(self, requests, generation_config, *, batch_size):
        self.multipliers.add(generation_config.lora_multiplier)
        self.num_answers += len(requests)
        return [StubAnswer("la " * 30 if "sing" in prompt else f"about {prompt.split()[-1]}") for prompt, _ in requests]


@pytest.fixture
def writer(debug_run, monkeypatch):
    """Replaces the weights of the debug run by `Writer`."""
    model = Writer(open_model(debug_run).fingerprint)
    monkeypatch.setattr(salmonn_jax, "load", lambda *args, **kwargs: model)
    return model


@pytest.fixture
def replay(debug_run, monkeypatch):
    """Returns a function that runs `launch.prepare self-replay` with the debug run and returns its exit code."""

    def run(output: pathlib.Path, *words: object) -> int:
        words = ["self-replay", "--model", debug_run, "--output", output, *words, "--max-new-tokens", 30]
        monkeypatch.setattr(sys, "argv", ["launch.prepare", *map(str, words)])
        try:
            cli.run(prepare.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def test_prompts_of_a_file(replay, writer, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Tell of ducks\n\nPlease sing\nTell of ducks\nTell\\nof geese\n")
    output = tmp_path / "data" / "text.jsonl"
    assert replay(output, "--prompts", prompts, "--no-preflight") == 0
    assert "kept 2 of 3 answers" in capsys.readouterr().out
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {(line["prompt"], line["answer"], line["task"]) for line in lines} == {
        ("Tell of ducks", "about ducks", "text"),
        ("Tell\nof geese", "about geese", "text"),
    }
    assert all("audio" not in line for line in lines)
    (rejected,) = map(json.loads, (tmp_path / "data" / "text.rejected.jsonl").read_text().splitlines())
    assert rejected["rule"] == "repeats" and writer.multipliers == {0.0}
    assert replay(output, "--prompts", prompts, "--no-preflight") == 0 and writer.num_answers == 3


def test_text_only_rows_of_a_manifest(replay, writer, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(8000, np.int16), 16_000)
    lines = [{"id": "1", "prompt": "Tell of ducks", "answer": "no"}, {"id": "2", "audio": "a.wav", "answer": "x"}]
    manifest = write(tmp_path / "train.jsonl", lines)
    assert replay(tmp_path / "text.jsonl", "--manifest", manifest, "--no-preflight") == 0
    (line,) = map(json.loads, (tmp_path / "text.jsonl").read_text().splitlines())
    assert line["answer"] == "about ducks"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to ask; give --prompts FILE.txt, --manifest or --corpus"),
        (["--prompts", "p.txt", "--corpus", "minicorpus"], "--prompts and a data set exclude each other"),
        (["--prompts", "absent.txt"], "absent.txt does not exist"),
        (["--prompts", "empty.txt"], "empty.txt has no prompt; write one in each line"),
        (["--prompts", "latin.txt"], "latin.txt is not text in UTF-8"),
        (["--prompts", "p.txt", "--min-words", 9, "--max-words", 3], "--min-words 9: must be at most --max-words 3"),
    ],
)
def test_bad_input_is_one_line(replay, writer, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("Tell\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert replay(tmp_path / "text.jsonl", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "text.jsonl").exists()
