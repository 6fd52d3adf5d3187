"""`launch.evaluate` on a debug run: manifests, long clips, meshes, and the field cases of evaluations."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import soundfile

import salmonn_jax
from salmonn_jax.evaluation.predictions import read_predictions
from tests.launch.evaluations import SOUNDS, bytes_of, write


def test_a_corpus_under_both_conditions(evaluate, tmp_path, capsys):
    words = ["--corpus", "tones", "--data-dir", tmp_path / "tones", "--splits", "test"]
    words += ["--conditions", "audio", "silence", "--no-preflight"]
    assert evaluate(tmp_path / "e", *words) == 0
    lines = [json.loads(line) for line in bytes_of(tmp_path / "e").splitlines()]
    assert len(lines) == 24  # 12 clips, each heard and as silence
    assert len({line["key"] for line in lines}) == 24
    assert "<audio" in (tmp_path / "e" / "index.html").read_text()
    assert json.loads((tmp_path / "e" / "scores.json").read_text())
    assert "24 predictions, none failed" in capsys.readouterr().err
    # Killed in the middle of a line and started again: the same file.
    first = bytes_of(tmp_path / "e")
    (tmp_path / "e" / "predictions.jsonl").write_bytes(first[: len(first) // 2])
    assert evaluate(tmp_path / "e", *words) == 0
    assert bytes_of(tmp_path / "e") == first


def evaluate_shuffled(evaluate, folder, name: str, seed: int, *words: object) -> dict[str, tuple[str, int]]:
    """Evaluates a shuffled manifest of prompts of different lengths and returns the answers by id."""
    prompts = ("What?", "What sound is this? " * 3)
    lines = [s | {"id": f"{s['id']} {i}", "prompt": prompt} for s in SOUNDS for i, prompt in enumerate(prompts)]
    random.Random(seed).shuffle(lines)
    assert evaluate(folder / name, "--manifest", write(folder / "mine.jsonl", lines), "--no-preflight", *words) == 0
    predictions = read_predictions(folder / name / "predictions.jsonl")
    return {prediction.id: (prediction.prediction, prediction.num_tokens) for prediction in predictions}


@pytest.mark.slow
def test_the_order_of_a_manifest_does_not_change_the_predictions(evaluate, folder):
    assert len(evaluate_shuffled(evaluate, folder, "one", 0)) == 8
    evaluate_shuffled(evaluate, folder, "two", 1)
    assert bytes_of(folder / "one") == bytes_of(folder / "two")
    run = json.loads((folder / "two" / "run.json").read_text())
    sizes = run["sessions"][0]["prompt_sizes"]
    assert len(sizes) == 2 and run["counts"]["compilations_of_process_0"] <= 2 * len(sizes)  # to encode, and to decode


@pytest.mark.slow
def test_batch_sizes_and_meshes_do_not_change_the_answers(evaluate, folder):
    answers = evaluate_shuffled(evaluate, folder, "eight devices", 0, "--mesh", "data=8")
    for number, words in enumerate((["tensor=8", "--batch-size", 1], ["fsdp=4", "tensor=2", "--batch-size", 4])):
        name = f"mesh {number}"
        assert evaluate_shuffled(evaluate, folder, name, 2 + number, "--mesh", *words) == answers
    session = json.loads((folder / "mesh 0" / "run.json").read_text())["sessions"][0]
    assert session["mesh"] == {"data": 1, "fsdp": 1, "tensor": 8}


def test_answers_are_those_of_the_model(evaluate, folder, debug_run):
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", SOUNDS), "--no-preflight") == 0
    model = salmonn_jax.load(debug_run)
    for prediction in read_predictions(folder / "e" / "predictions.jsonl"):
        clip = folder / f"{prediction.id[1:]}.wav"
        (answer,) = model.generate(clip, "What sound is this?", num_beams=1, max_new_tokens=4)
        assert (answer.text, answer.num_tokens) == (prediction.prediction, prediction.num_tokens)


def test_long_clips(evaluate, folder):
    samples = 0.3 * np.sin(2 * np.pi * 220 * np.arange(40_000) / 16_000)
    soundfile.write(folder / "long.wav", samples, 16_000)
    lines = [SOUNDS[0], SOUNDS[1] | {"id": "long", "audio": "long.wav"}]
    words = ["--manifest", write(folder / "m.jsonl", lines)]
    windows = {"error": [], "truncate": [[0.0, 1.0]]}
    for too_long, expected in windows.items():
        output = folder / too_long
        assert evaluate(output, *words, "--too-long", too_long) == (2 if too_long == "error" else 0)
        by_id = {prediction.id: prediction for prediction in read_predictions(output / "predictions.jsonl")}
        assert (by_id["long"].audio_seconds, by_id["long"].windows, by_id["long"].too_long) == (2.5, expected, too_long)
        assert by_id["s0"].windows == [[0.0, 1.0]]  # clips of half a second are padded, as in training
    assert by_id["long"].error == ""
    errors = {p.id: p.error for p in read_predictions(folder / "error" / "predictions.jsonl")}
    assert errors["long"].startswith("too long: the clip of 'long' (m) is 2.5 s, the window 1 s") and not errors["s0"]
    counts = json.loads((folder / "truncate" / "run.json").read_text())["counts"]
    assert counts["truncated_clips"] == 1 and counts["errors"] == {}


@pytest.mark.slow
def test_every_task_of_the_prompt_file_is_evaluated(evaluate, folder, capsys):
    """Field case 16: `task: asr` was predicted whole, and then ended with "unknown task"."""
    from data_pipelines.transforms.prompt_templates import PromptTemplates

    tasks = sorted(PromptTemplates.load().by_task)
    lines = [
        {"id": f"{task} {k}", "audio": f"{k}.wav", "answer": f"one two {k}", "task": task, "prompt": "What?"}
        for task in tasks
        for k in range(2)
    ]
    assert evaluate(folder / "e", "--manifest", write(folder / "mine.jsonl", lines), "--no-preflight") == 0
    rows = json.loads((folder / "e" / "scores.json").read_text())["rows"]
    assert {row["task"] for row in rows} == set(tasks)


def test_the_report_plays_the_clip_of_the_source(evaluate, folder):
    """Field case 6: two data sets without ids, whose rows have the same numbers."""
    from salmonn_jax.evaluation.report import _flac

    bare = [{name: value for name, value in line.items() if name != "id"} for line in SOUNDS[:2]]
    write(folder / "one.test.jsonl", bare)
    write(folder / "two.test.jsonl", [line | {"audio": f"{3 - k}.wav"} for k, line in enumerate(bare)])
    assert evaluate(folder / "e", "--manifest", folder, "--no-preflight") == 0
    page = (folder / "e" / "index.html").read_text()
    predictions = read_predictions(folder / "e" / "predictions.jsonl")
    assert sorted((p.source, p.id) for p in predictions) == [("one", "0"), ("one", "1"), ("two", "0"), ("two", "1")]
    clips = [np.pad(soundfile.read(folder / f"{k}.wav", dtype="int16")[0], (0, 8000)) for k in range(4)]
    assert sum(_flac(clip) in page for clip in clips) == 3  # three samples of a task, each with its own clip


def test_an_audio_file_that_changes_is_predicted_again(evaluate, folder):
    words = ["--manifest", write(folder / "m.jsonl", SOUNDS), "--no-preflight"]
    assert evaluate(folder / "e", *words) == 0
    keys = {p.id: p.key for p in read_predictions(folder / "e" / "predictions.jsonl")}
    (folder / "0.wav").write_bytes((folder / "3.wav").read_bytes())
    assert evaluate(folder / "e", *words) == 0
    changed = {p.id for p in read_predictions(folder / "e" / "predictions.jsonl") if keys[p.id] != p.key}
    assert changed == {"s0"}
