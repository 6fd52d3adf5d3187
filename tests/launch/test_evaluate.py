"""`launch.evaluate` and `launch.generate` on a debug run."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import soundfile

from launch import cli, generate
from launch.evaluate import evaluate


def test_each_clip_is_answered_once_and_scored(debug_run, tmp_path):
    options = {
        "corpus": "tones",
        "data_dir": tmp_path / "tones",
        "splits": ["test"],
        "batch_size": 8,
        "max_new_tokens": 4,
    }
    evaluate(debug_run, tmp_path / "evaluation", **options)
    path = tmp_path / "evaluation" / "predictions.jsonl"
    first = path.read_text()
    lines = [json.loads(line) for line in first.splitlines()]
    assert len(lines) == 24  # 12 clips, each heard and as silence
    assert len({line["key"] for line in lines}) == 24
    assert "<audio" in (tmp_path / "evaluation" / "index.html").read_text()
    assert json.loads((tmp_path / "evaluation" / "scores.json").read_text())
    # Killed in the middle of a line and started again: the same file.
    path.write_text(first[: len(first) // 2])
    evaluate(debug_run, tmp_path / "evaluation", **options)
    assert sorted(path.read_text().splitlines()) == sorted(first.splitlines())


def ask(debug_run, *files: str, monkeypatch):
    arguments = ["launch.generate", "--model", str(debug_run), "--prompt", "Which tone is this?"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--max-new-tokens", "4", *map(str, files)])
    cli.run(generate.main)


def test_generate_answers_each_file(debug_run, tmp_path, monkeypatch, capsys):
    time = np.arange(22_050) / 44_100
    for name, hertz in (("a.wav", 220), ("b.flac", 1980)):
        soundfile.write(tmp_path / name, 0.3 * np.sin(2 * np.pi * hertz * time), 44_100)
    ask(debug_run, tmp_path / "a.wav", tmp_path / "b.flac", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]


@pytest.mark.parametrize("name", ["missing.wav", "empty.wav", "text.wav"])
def test_a_wrong_file_is_one_line(debug_run, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no recording")
    with pytest.raises(SystemExit) as stopped:
        ask(debug_run, tmp_path / name, monkeypatch=monkeypatch)
    told = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(told) == 1
    assert name in told[0]
