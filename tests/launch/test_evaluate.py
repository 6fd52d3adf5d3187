"""Tests of `launch.evaluate` and `launch.generate` with a model trained for two steps."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import soundfile

from launch import cli, generate
from launch.evaluate import evaluate
from launch.train import train
from salmonn_jax.configs import get_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with the corpus `tones` and the run directory `run`."""
    folder = tmp_path_factory.mktemp("evaluate")
    data = dataclasses.replace(get_config("debug").data, data_dir=str(folder / "tones"))
    train(dataclasses.replace(get_config("debug"), num_train_steps=2, data=data), folder / "run", None)
    return folder


def test_evaluate_answers_each_clip_once_per_condition_and_resumes(folder):
    options = {
        "corpus": "tones",
        "data_dir": folder / "tones",
        "splits": ["test"],
        "batch_size": 8,
        "max_new_tokens": 4,
    }
    evaluate(folder / "run", folder / "evaluation", **options)
    path = folder / "evaluation" / "predictions.jsonl"
    complete = path.read_text()
    lines = [json.loads(line) for line in complete.splitlines()]
    assert len(lines) == 24  # 12 clips with two conditions each
    assert len({line["key"] for line in lines}) == 24
    assert "<audio" in (folder / "evaluation" / "index.html").read_text()
    assert json.loads((folder / "evaluation" / "scores.json").read_text())
    # An evaluation that was killed in the middle of a line resumes and writes the same predictions.
    path.write_text(complete[: len(complete) // 2])
    evaluate(folder / "run", folder / "evaluation", **options)
    assert sorted(path.read_text().splitlines()) == sorted(complete.splitlines())


def run_generate(folder, *files: str, monkeypatch):
    """Runs `launch.generate` in this process with a fixed prompt."""
    arguments = ["launch.generate", "--model", str(folder / "run"), "--prompt", "Which tone is this?"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--max-new-tokens", "4", *map(str, files)])
    cli.run(generate.main)


def test_generate_answers_each_file(folder, tmp_path, monkeypatch, capsys):
    time = np.arange(22_050) / 44_100
    for name, hertz in (("a.wav", 220), ("b.flac", 1980)):
        soundfile.write(tmp_path / name, 0.3 * np.sin(2 * np.pi * hertz * time), 44_100)
    run_generate(folder, tmp_path / "a.wav", tmp_path / "b.flac", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]


@pytest.mark.parametrize("name", ["missing.wav", "empty.wav", "text.wav"])
def test_a_wrong_file_is_reported_in_one_line(folder, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no recording")
    with pytest.raises(SystemExit) as exit_info:
        run_generate(folder, tmp_path / name, monkeypatch=monkeypatch)
    error_lines = capsys.readouterr().err.strip().splitlines()
    assert exit_info.value.code == 2
    assert len(error_lines) == 1
    assert name in error_lines[0]
