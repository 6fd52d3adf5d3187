"""`launch.evaluate` on a debug run: manifests, long clips, meshes, refusals, and the field cases of evaluations."""

from __future__ import annotations

import json
import pathlib
import random
import re
import sys

import jax
import numpy as np
import pytest
import soundfile

import salmonn_jax
from launch import cli
from launch import evaluate as verb
from salmonn_jax.evaluation.predictions import read_predictions

GREEDY = ("--num-beams", "1", "--max-new-tokens", "4", "--batch-size", "8")  # one compiled program for most tests
SOUNDS = [
    {"id": f"s{k}", "audio": f"{k}.wav", "answer": answer, "task": "sound", "prompt": "What sound is this?"}
    for k, answer in enumerate(("rain", "bell", "dog", "wind"))
]


def write(path: pathlib.Path, lines: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with four clips of half a second; the window of the debug run has one second."""
    for k in range(4):
        samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * k) * np.arange(8000) / 16_000)
        soundfile.write(tmp_path / f"{k}.wav", samples, 16_000)
    return tmp_path


@pytest.fixture
def evaluate(debug_run, monkeypatch):
    """Returns a function that runs `python -m launch.evaluate` with the debug run and returns its exit code."""

    def run(output: pathlib.Path, *words: object, greedy: bool = True) -> int:
        words = ["--model", debug_run, "--output", output, *(GREEDY if greedy else ()), *words]
        monkeypatch.setattr(sys, "argv", ["launch.evaluate", *map(str, words)])
        try:
            cli.run(verb.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def bytes_of(output: pathlib.Path) -> bytes:
    return (output / "predictions.jsonl").read_bytes()


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


def test_files_that_cannot_be_used_are_counted_as_wrong(evaluate, folder, capsys):
    (folder / "2.wav").write_bytes(b"no audio")
    words = ["--manifest", write(folder / "m.jsonl", SOUNDS)]
    assert evaluate(folder / "e", *words, "--no-preflight") == 2
    assert "4 predictions, 1 failed (undecodable 1)" in capsys.readouterr().err
    (row,) = json.loads((folder / "e" / "scores.json").read_text())["rows"]
    assert row["audio"]["count"] == 4
    assert evaluate(folder / "strict", *words, "--max-failures", 0) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: 1 predictions failed, more than --max-failures 0; the last is that of 's2': undec")


def test_missing_files_are_refused_or_accepted_as_errors(evaluate, folder, capsys):
    lines = [*SOUNDS, SOUNDS[0] | {"id": "m", "audio": "gone.wav"}, SOUNDS[0] | {"id": "n", "audio": "away.wav"}]
    words = ["--manifest", write(folder / "m.jsonl", lines)]
    assert evaluate(folder / "e", *words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        f"error: missing audio files: 2, the first is {folder}/gone.wav; correct the manifest, or accept them as "
        "errors with --max-failures 2"
    )
    assert not (folder / "e").exists()
    assert evaluate(folder / "e", *words, "--max-failures", 1) == 2
    assert evaluate(folder / "e", *words, "--max-failures", 2, "--no-preflight") == 2
    predictions = read_predictions(folder / "e" / "predictions.jsonl")
    assert sorted((p.id, p.finish_reason) for p in predictions if p.error) == [("m", "error"), ("n", "error")]
    assert len(predictions) == 6


def test_an_empty_manifest_has_no_predictions(evaluate, folder, capsys):
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", [])) == 0
    assert bytes_of(folder / "e") == b""
    assert "the data sets have no rows; there is nothing to score" in capsys.readouterr().err


FIELD_CASES = {
    # field case 14: found before the first prediction, named by line
    "exact_duplicate": ([*SOUNDS, SOUNDS[0]], r"line 5 of .* and line 1 of .* have the same id 's0'"),
    "same_id": ([*SOUNDS, SOUNDS[1] | {"answer": "bells"}], r"line 5 of .* and line 2 of .* have the same id 's1'"),
    # field case 16: unknown tasks and metrics, before the first prediction
    "unknown_task": ([SOUNDS[0] | {"task": "sounds"}], r"line 1 of .*: unknown task 'sounds'; did you mean 'sound'\?"),
    "unknown_metric": ([SOUNDS[0] | {"metric": "werr"}], r"line 1 of .*: unknown metric 'werr'"),
}


@pytest.mark.parametrize("name", FIELD_CASES)
def test_faults_of_a_manifest_are_found_before_the_model_is_loaded(evaluate, folder, capsys, monkeypatch, name):
    lines, message = FIELD_CASES[name]
    monkeypatch.setattr(salmonn_jax, "load", lambda *_, **__: pytest.fail("the model is loaded"))
    assert evaluate(folder / "e", "--manifest", write(folder / "mine.test.jsonl", lines)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and re.search(message, told)
    assert not (folder / "e").exists()


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


def test_lines_that_cannot_be_used_are_told_and_the_rest_goes_on(evaluate, folder, capsys):
    """Field case 9: a lone surrogate in a line."""
    path = write(folder / "m.jsonl", SOUNDS)
    with path.open("a") as file:
        file.write('{"id": "u", "audio": "1.wav", "answer": "party \\ud83c", "task": "sound", "prompt": "What?"}\n')
    assert evaluate(folder / "e", "--manifest", path, "--no-preflight") == 2
    told = capsys.readouterr().err
    assert "line 5 of" in told and "1 rows cannot be used and have no prediction" in told
    assert len(read_predictions(folder / "e" / "predictions.jsonl")) == 4
    (source,) = json.loads((folder / "e" / "run.json").read_text())["sources"]
    assert source["rows"] == 5 and len(source["rejected"]) == 1
    assert evaluate(folder / "f", "--manifest", path, "--max-failures", 0) == 2
    assert "1 rows cannot be used, more than --max-failures 0" in capsys.readouterr().err


def test_other_settings_are_refused(evaluate, folder, capsys):
    words = ["--manifest", write(folder / "m.jsonl", SOUNDS), "--no-preflight"]
    assert evaluate(folder / "e", *words) == 0
    capsys.readouterr()
    before = bytes_of(folder / "e")
    assert evaluate(folder / "e", *words, "--max-new-tokens", "5", "--num-beams", "1", greedy=False) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "was made with generation_config.max_new_tokens=4, not 5; choose another --output" in told
    assert evaluate(folder / "e", *words, "--channels", "mean") == 2
    assert 'was made with channels="first", not "mean"' in capsys.readouterr().err
    assert evaluate(folder / "e", *words, "--batch-size", 1) == 0  # changes no answer
    assert bytes_of(folder / "e") == before


def test_an_audio_file_that_changes_is_predicted_again(evaluate, folder):
    words = ["--manifest", write(folder / "m.jsonl", SOUNDS), "--no-preflight"]
    assert evaluate(folder / "e", *words) == 0
    keys = {p.id: p.key for p in read_predictions(folder / "e" / "predictions.jsonl")}
    (folder / "0.wav").write_bytes((folder / "3.wav").read_bytes())
    assert evaluate(folder / "e", *words) == 0
    changed = {p.id for p in read_predictions(folder / "e" / "predictions.jsonl") if keys[p.id] != p.key}
    assert changed == {"s0"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mesh", "tensor"], "--mesh tensor: must be AXIS=SIZE"),
        (["--mesh", "tensor=0"], "--mesh tensor=0: must be AXIS=SIZE with a size of at least 1"),
        (["--mesh", "tensor=3"], "--mesh tensor=3 has 3 devices, but each process has 8; the sizes must divide them"),
        (["--mesh", "data=4"], "--mesh data=4 has 4 devices, but each process has 8"),
        (["--mesh", "tensr=4"], "unknown mesh axis 'tensr'; did you mean 'tensor'?"),
        (["--batch-size", "0"], "--batch-size: '0': must be a whole number of at least 1"),
        (["--max-failures", "-1"], "--max-failures: '-1': must be a whole number of at least 0"),
        (["--corpus", "tones"], "--corpus is not used with --manifest"),
        (["--num-beams", "0"], "num_beams=0: must be greater than 0"),
        (["--conditions", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_wrong_options_are_one_line(evaluate, folder, capsys, words, message):
    assert jax.device_count() == 8
    manifest = write(folder / "m.jsonl", SOUNDS)
    assert evaluate(folder / "e", "--manifest", manifest, *words, greedy="--num-beams" not in words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and message in told
    assert not (folder / "e").exists()


def test_preflight_stops_a_model_without_ears(evaluate, folder, debug_run, capsys, monkeypatch):
    """The Q-Former of the model returns zeros, so its answers depend on the prompt alone."""
    load = salmonn_jax.load

    def load_deaf(*args, **kwargs):
        model = load(*args, **kwargs)
        model.module.encode_audio = lambda pcm, length: 0 * type(model.module).encode_audio(model.module, pcm, length)
        return model

    monkeypatch.setattr(salmonn_jax, "load", load_deaf)
    segments = [{"path": f"{k}.wav", "start": start} for k in range(4) for start in (0.0, 0.1, 0.2, 0.3)]
    lines = [SOUNDS[i // 4] | {"id": f"{i}", "audio": segment} for i, segment in enumerate(segments)]
    assert evaluate(folder / "e", "--manifest", write(folder / "m.jsonl", lines)) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: preflight: the first 16 answers are all ") and "another version of Vicuna" in told
