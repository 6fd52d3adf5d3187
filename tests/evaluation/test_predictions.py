"""Tests of prediction files: keys, appending, and recovery after a killed process."""

from __future__ import annotations

import json
import os
import re

import pytest

from salmonn_jax import files
from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.predictions import (
    Prediction,
    PredictionLog,
    find_prediction_files,
    merge_predictions,
    prediction_key,
    prediction_path,
    read_predictions,
    to_line,
)
from salmonn_jax.paths import as_path

ROW = {
    "id": "a",
    "source": "mini",
    "split": "test",
    "task": "transcribe",
    "metric": "",
    "prompt": "What is said?",
    "question": "",
    "references": ["hello"],
    "transcript": "",
    "language": "en",
    "choices": [],
    "group": {"speaker": "1089"},
}
SETTINGS = {"generation_config": {"num_beams": 4, "max_new_tokens": 100}, "model": "f00d"}
KEY_ARGUMENTS = {"condition": "audio", "audio_hash": "abcd", "settings": SETTINGS}


def make(key: str, **changes: object) -> Prediction:
    answer = {"prediction": "hello", "finish_reason": "stop", "num_tokens": 3, "score": -0.5, "audio_seconds": 1.5}
    answer |= {"condition": "audio", "too_long": "error", "windows": [[0.0, 1.5]]}
    return Prediction(**(ROW | answer | {"key": key} | changes))


def test_the_fields_of_a_line_and_their_order():
    """Other programs read these files, so the names and the order of the fields are fixed."""
    row = ["key", "id", "source", "split", "task", "metric", "condition", "prompt", "question", "references"]
    row += ["transcript", "language", "choices", "group"]
    answer = ["prediction", "finish_reason", "error", "num_tokens", "score", "audio_seconds", "too_long", "windows"]
    assert list(json.loads(to_line(make("1")))) == row + answer


def test_key_is_stable_and_ignores_the_order_of_settings():
    key = prediction_key(ROW, **KEY_ARGUMENTS)
    assert len(key) == 64 and int(key, 16) > 0
    swapped = {"model": "f00d", "generation_config": {"max_new_tokens": 100, "num_beams": 4}}
    assert prediction_key(dict(reversed(ROW.items())), **(KEY_ARGUMENTS | {"settings": swapped})) == key


@pytest.mark.parametrize("name", ROW)
def test_key_depends_on_every_field_of_the_row(name):
    changed = {str: "other", list: ["other"], dict: {"speaker": "other"}}[type(ROW[name])]
    assert prediction_key(ROW | {name: changed}, **KEY_ARGUMENTS) != prediction_key(ROW, **KEY_ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("condition", "silence"),
        ("audio_hash", "abce"),
        ("audio_hash", ""),
        ("settings", SETTINGS | {"model": "beef"}),
        ("settings", SETTINGS | {"generation_config": {"num_beams": 1, "max_new_tokens": 100}}),
    ],
)
def test_key_depends_on_condition_audio_and_settings(name, value):
    assert prediction_key(ROW, **(KEY_ARGUMENTS | {name: value})) != prediction_key(ROW, **KEY_ARGUMENTS)


def test_key_separates_adjacent_fields():
    first = prediction_key(ROW | {"prompt": "ab", "question": "c"}, **KEY_ARGUMENTS)
    assert first != prediction_key(ROW | {"prompt": "a", "question": "bc"}, **KEY_ARGUMENTS)


def test_key_of_an_incomplete_row_raises_value_error():
    with pytest.raises(ValueError, match="'metric'"):
        prediction_key({name: ROW[name] for name in ROW if name != "metric"}, **KEY_ARGUMENTS)


def test_appended_predictions_are_read_back_in_order(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    # str.splitlines splits at U+2028. The reader must not.
    written = [make("1", prediction="это\u2028мы\n"), make("2", condition="silence", prediction="")]
    with PredictionLog(path) as log:
        for prediction in written:
            log.append([prediction])
            assert read_predictions(path)[-1] == prediction  # flushed while the log is still open
        assert log.completed_keys() == {"1", "2"}
    assert read_predictions(path) == written
    assert "это" in path.read_text(encoding="utf-8")


def test_a_reopened_log_refuses_completed_keys(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionLog(path) as log:
        log.append([make("1")])
    with PredictionLog(path) as log:
        assert log.completed_keys() == {"1"}
        log.append([make("2")])
        for key in ("1", "2"):
            with pytest.raises(ValueError, match="already"):
                log.append([make("3"), make(key)])
    assert [prediction.key for prediction in read_predictions(path)] == ["1", "2"]


def test_completed_keys_is_a_copy(tmp_path):
    with PredictionLog(tmp_path / "p.jsonl") as log:
        log.completed_keys().add("1")
        log.append([make("1")])


def test_a_last_line_cut_at_any_byte_loses_only_that_prediction(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionLog(path) as log:
        log.append([make("1")])
        first_line_size = path.stat().st_size
        log.append([make("2", prediction="день")])
    complete = path.read_bytes()
    for cut in range(first_line_size, len(complete)):
        path.write_bytes(complete[:cut])
        assert [prediction.key for prediction in read_predictions(path)] == ["1"]
        assert path.stat().st_size == cut  # reading changes nothing
        with PredictionLog(path) as log:
            assert log.completed_keys() == {"1"}
            log.append([make("2", prediction="день")])
        assert path.read_bytes() == complete


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "2", "id"',
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"key": "2"}',
        json.dumps(vars(make("2")) | {"extra": 1}).encode(),
        json.dumps(vars(make("2")) | {"prediction": None}).encode(),
        json.dumps(vars(make("2")) | {"condition": "both"}).encode(),
        json.dumps(vars(make("2")) | {"references": []}).encode(),
        json.dumps(vars(make("2")) | {"references": "hello"}).encode(),
        json.dumps(vars(make("2")) | {"group": {"speaker": 1}}).encode(),
        json.dumps(vars(make("2")) | {"finish_reason": "error"}).encode(),
        json.dumps(vars(make("2")) | {"error": "no file"}).encode(),
        json.dumps(vars(make("2")) | {"score": "nan"}).encode(),
    ],
)
def test_a_wrong_line_raises_user_error_and_leaves_the_file_unchanged(tmp_path, line):
    path = tmp_path / "p.jsonl"
    good = json.dumps(vars(make("1"))).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good[:9])
    before = path.read_bytes()
    for opener in (read_predictions, PredictionLog):
        with pytest.raises(UserError, match=r"p\.jsonl:2 is not a prediction"):
            opener(path)
    assert path.read_bytes() == before


def test_a_repeated_prediction_raises_user_error(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [json.dumps(vars(make(key))) for key in ("1", "2", "1")]
    path.write_text("\n".join(lines) + "\n")
    for opener in (read_predictions, PredictionLog):
        with pytest.raises(UserError, match=r"p\.jsonl:3 repeats the prediction of line 1"):
            opener(path)


def test_an_error_may_be_followed_by_an_answer(tmp_path):
    error = make("1", prediction="", finish_reason="error", error="missing: no file")
    with PredictionLog(tmp_path / "p.jsonl") as log:
        log.append([error, make("2")])
        log.append([error])
        log.append([make("1")])
    with PredictionLog(tmp_path / "p.jsonl") as log:
        assert log.completed_keys() == {"1", "2"}
    assert len(read_predictions(tmp_path / "p.jsonl")) == 4


def test_every_batch_is_synced_to_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_size)  # what is in the file, not in a buffer of this process

    monkeypatch.setattr(os, "fsync", fsync)
    with PredictionLog(tmp_path / "p.jsonl") as log:
        log.append([make("1")])
        log.append([make("2"), make("3")])
        assert synced == [len(to_line(make("1"))), sum(len(to_line(make(key))) for key in "123")]


def _number(file) -> str:
    """Returns the number in the name of an object of process 1."""
    return re.fullmatch(r"predictions-1-[0-9a-f]{8}-(\d{6})\.jsonl", file.name)[1]


def test_a_log_in_a_bucket_is_numbered_objects(bucket, monkeypatch):
    monkeypatch.setattr(files, "BATCH_UPLOAD_SECONDS", 1000)
    directory = as_path("gs://lab/eval")
    path = prediction_path(directory, 1)
    with PredictionLog(path) as log:
        log.append([make("1")])  # uploaded at once, and the next ones when the file is closed
        log.append([make("2")])
        log.append([make("3")])
        assert [_number(file) for file in find_prediction_files(directory)] == ["000000"]
    with PredictionLog(path, find_prediction_files(directory)) as log:
        assert log.completed_keys() == {"1", "2", "3"}
        log.append([make("4")])
        # Another job that writes to the same directory: none of its objects replaces one of this job.
        with PredictionLog(path, find_prediction_files(directory)) as other:
            other.append([make("5")])
    assert sorted(map(_number, find_prediction_files(directory))) == ["000000", "000000", "000000", "000001"]
    assert merge_predictions(directory, dict.fromkeys("12345", "a")) == 0
    assert [file.name for file in find_prediction_files(directory)] == ["predictions.jsonl"]
    assert [prediction.key for prediction in read_predictions(directory / "predictions.jsonl")] == list("12345")


def test_a_missing_file_raises_user_error(tmp_path):
    with pytest.raises(UserError, match="no prediction file"):
        read_predictions(tmp_path / "p.jsonl")
