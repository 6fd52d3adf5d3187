"""The effect of activation tuning: `launch.score --compare` on stories and speech recognition before and after it."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from launch import cli
from launch import score as launch_score
from salmonn_jax.evaluation.predictions import to_line
from tests.evaluation.answers import make_pairs

NUM_CLIPS = 8
WORDS = "the old ship leaves its quiet harbour at dawn while gulls cry over cold water and every bell on land begins"
SENTENCES = [f"sentence number {n} is read aloud here" for n in range(NUM_CLIPS)]


def story(number: int) -> str:
    """Returns 35 words, of which 22 differ."""
    return " ".join([*WORDS.split(), f"again{number}", "and", *(["again"] * 11), "stop"])


def write_evaluation(directory: pathlib.Path, stories: list[str], transcripts: list[str]) -> pathlib.Path:
    directory.mkdir()
    predictions = make_pairs("audio_story_telling", ["a ship"] * NUM_CLIPS, stories)
    predictions += make_pairs("asr", SENTENCES, transcripts)
    (directory / "predictions.jsonl").write_bytes(b"".join(map(to_line, predictions)))
    return directory


def test_stories_and_recognition_are_compared_in_pairs(tmp_path, monkeypatch, capsys):
    before = write_evaluation(tmp_path / "stage2", ["a ship leaves"] * NUM_CLIPS, SENTENCES)
    told = [story(number) for number in range(NUM_CLIPS - 1)]
    heard = [SENTENCES[0].replace("aloud", "allowed"), *SENTENCES[1:]]
    after = write_evaluation(tmp_path / "stage3", [*told, "a ship leaves"], heard)
    monkeypatch.setattr(sys, "argv", ["launch.score", str(after), "--compare", str(before)])
    cli.run(launch_score.main)
    comparisons = {(c["task"], c["metric"]): c for c in json.loads((after / "scores.json").read_text())["comparisons"]}
    assert {c["count"] for c in comparisons.values()} == {NUM_CLIPS}
    words = len(set(story(0).split()))
    expected = {
        ("audio_story_telling", "diversity"): ((7 * words + 3) / 8, 3.0),
        ("audio_story_telling", "following_rate"): (7 / 8, 0.0),
        ("asr", "wer"): (1 / 56, 0.0),
    }
    assert set(comparisons) == set(expected)
    for key, (value, other_value) in expected.items():
        comparison = comparisons[key]
        assert (comparison["value"], comparison["other_value"]) == pytest.approx((value, other_value)), key
        assert comparison["low"] <= comparison["difference"] <= comparison["high"], key
    assert comparisons["audio_story_telling", "following_rate"]["p_value"] < 0.05 < comparisons["asr", "wer"]["p_value"]
    table = capsys.readouterr().out.partition("compared with")[2]
    assert "following_rate" in table and "+87.5" in table
