"""`launch.evaluate` on a debug run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from launch.evaluate import evaluate
from salmonn_jax.errors import UserError


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


def test_long_clips(debug_run, tmp_path, capsys):
    """The window of the debug run has one second."""
    for name, seconds in (("short", 0.5), ("long", 2.5)):
        samples = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(16_000 * seconds)) / 16_000)
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    lines = [{"id": name, "audio": f"{name}.wav", "task": "sound", "answer": "low"} for name in ("short", "long")]
    prompt = {"prompt": "<Speech><SpeechHere></Speech> Which tone?"}
    (tmp_path / "mine.test.jsonl").write_text("".join(json.dumps(line | prompt) + "\n" for line in lines))
    options = {"corpus": "files", "data_dir": tmp_path, "splits": ["test"], "batch_size": 2, "max_new_tokens": 4}
    with pytest.raises(UserError, match=r"the clip of 'long' \(mine\) is 2\.5 s, the window 1 s; choose too_long"):
        evaluate(debug_run, tmp_path / "error", **options)
    assert not (tmp_path / "error").exists()
    windows = {"truncate": [[0.0, 1.0]], "chunk": [[0.0, 1.0], [1.0, 2.0], [2.0, 2.5]]}
    for too_long, expected in windows.items():
        evaluate(debug_run, tmp_path / "evaluation", too_long=too_long, **options)
        assert f"test: 1 of 2 clips are longer than the window of 1 s: {too_long}" in capsys.readouterr().err
        records = [
            json.loads(line) for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()
        ]
        (record,) = [
            record
            for record in records
            if (record["too_long"], record["id"], record["condition"]) == (too_long, "long", "audio")
        ]
        assert (record["audio_seconds"], record["windows"]) == (2.5, expected)
    assert len(records) == 8  # of each policy: two clips, as audio and as silence
