"""Tests of evaluations with a stub model: N predictions for N rows, batches, restarts, refused settings."""

from __future__ import annotations

import json
import random

import pytest

from salmonn_jax.errors import RunError, UserError
from salmonn_jax.evaluation.predict import READ_AHEAD_BATCHES
from salmonn_jax.evaluation.predictions import merge_predictions, read_predictions
from salmonn_jax.evaluation.run import run_evaluation
from tests.evaluation.running import evaluate, evaluate_as, merged
from tests.evaluation.stub import SETTINGS, StubModel, StubRows, stub_evaluation


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9, 63])
def test_n_rows_have_n_predictions_in_any_batches_order_and_processes(num_rows, tmp_path):
    rows = StubRows(range(num_rows))
    shuffled = StubRows(random.Random(0).sample(range(num_rows), num_rows))
    for batch_size in (1, 4, 8):
        model = evaluate(tmp_path / str(batch_size), rows, batch_size=batch_size)
        assert model.num_answers == num_rows
    evaluate(tmp_path / "shuffled", shuffled)
    models = evaluate_as(2, tmp_path / "by two", rows, batch_size=1)
    assert sorted(model.num_answers for model in models) == [num_rows // 2, (num_rows + 1) // 2]
    predictions = read_predictions(tmp_path / "1" / "predictions.jsonl")
    assert sorted(prediction.id for prediction in predictions) == sorted(f"row-{n}" for n in range(num_rows))
    assert [prediction.key for prediction in predictions] == sorted(prediction.key for prediction in predictions)
    for other in ("4", "8", "shuffled", "by two"):
        assert merged(tmp_path / other) == merged(tmp_path / "1")
        assert not list((tmp_path / other).glob("predictions-*"))


def test_batches_have_one_bucket_and_are_full_but_for_the_last(tmp_path):
    model = evaluate(tmp_path, StubRows(range(63), num_prompts=3), batch_size=8, preflight=False)
    assert sorted(model.batch_sizes) == sorted(3 * [8, 8, 5])
    timings = [json.loads(line) for line in (tmp_path / "timing-0.jsonl").read_text().splitlines()]
    assert [timing["rows"] for timing in timings] == model.batch_sizes


def test_the_model_chooses_the_batch_size(tmp_path):
    model = evaluate(tmp_path, StubRows(range(16), num_prompts=1), batch_size=None)
    assert model.batch_sizes == [8, 8]


def test_few_clips_are_in_memory(tmp_path):
    """Each clip is read once, and only those of the batch and of two more are read before the batch is answered."""

    class CountingRows(StubRows):
        num_read = 0

        def read_audio(self, index):
            self.num_read += 1
            return super().read_audio(index)

    rows, ahead = CountingRows(range(200), num_prompts=1), []

    class CountingModel(StubModel):
        seconds_per_batch = 0.002  # the readers get ahead

        def answer(self, requests, generation_config, *, batch_size):
            ahead.append(rows.num_read - self.num_answers)
            return super().answer(requests, generation_config, batch_size=batch_size)

    evaluate(tmp_path, rows, CountingModel(), batch_size=4)
    assert rows.num_read == 200
    assert 4 < max(ahead) <= (1 + READ_AHEAD_BATCHES) * 4


def test_both_conditions_but_once_for_text_only_rows(tmp_path):
    evaluate(tmp_path / "clips", StubRows(range(5), num_prompts=1), conditions=("audio", "silence"))
    predictions = read_predictions(tmp_path / "clips" / "predictions.jsonl")
    assert sorted(prediction.condition for prediction in predictions) == 5 * ["audio"] + 5 * ["silence"]
    answers = {prediction.prediction for prediction in predictions if prediction.condition == "silence"}
    assert answers == {StubModel().text("What is this? ", bytes(2 * 160))}
    evaluate(tmp_path / "texts", StubRows(range(5), has_audio=False), conditions=("audio", "silence"))
    assert len(read_predictions(tmp_path / "texts" / "predictions.jsonl")) == 5


def test_a_restart_makes_only_what_is_missing(tmp_path):
    rows = StubRows(range(9))
    evaluate(tmp_path, rows)
    complete = merged(tmp_path)
    assert evaluate(tmp_path, rows).num_answers == 0
    lines = complete.splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").unlink()
    (tmp_path / "predictions-5.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])  # of a process that was killed
    assert evaluate(tmp_path, rows, batch_size=2).num_answers == 6
    assert merged(tmp_path) == complete


def test_a_missing_prediction_is_named(tmp_path):
    rows = StubRows(range(9))
    evaluate(tmp_path, rows)
    expected = {prediction.key: prediction.id for prediction in read_predictions(tmp_path / "predictions.jsonl")}
    lines = merged(tmp_path).splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").write_bytes(b"".join(lines[:4] + lines[5:]))
    id = json.loads(lines[4])["id"]
    with pytest.raises(RunError, match=f"1 of 9 predictions are missing in .*, the first that of '{id}'; run the same"):
        merge_predictions(tmp_path, expected)


def test_two_different_answers_with_one_key_are_refused(tmp_path):
    evaluate(tmp_path, StubRows(range(2)))
    line = merged(tmp_path).splitlines()[0]
    prediction = json.loads(line)
    (tmp_path / "predictions-1.jsonl").write_bytes(line + b"\n")
    evaluate(tmp_path, StubRows(range(2)))  # the same answer twice, as after a kill between merging and deleting
    (tmp_path / "predictions-1.jsonl").write_text(json.dumps(prediction | {"prediction": "other"}) + "\n")
    with pytest.raises(RunError, match=f"two different answers to '{prediction['id']}'"):
        evaluate(tmp_path, StubRows(range(2)))


def test_predictions_of_rows_that_are_gone_are_left_out(tmp_path, capsys):
    evaluate(tmp_path, StubRows(range(9)))
    assert evaluate(tmp_path, StubRows(range(8))).num_answers == 0
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 8
    assert "1 earlier predictions are of rows that changed or are gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": SETTINGS | {"generation_config.num_beams": 4}}, "with generation_config.num_beams=1, not 4"),
        ({"settings": SETTINGS | {"model.fingerprint": "beef"}}, 'with model.fingerprint="f00d", not "beef"'),
        ({"conditions": ("silence",)}, r'with conditions=\["audio"\], not \["silence"\]'),
        ({"sources": [{"name": "b", "split": "test"}]}, r'with sources=\["stub/test"\], not \["b/test"\]'),
    ],
)
def test_other_settings_are_refused_before_the_first_prediction(tmp_path, changes, message):
    evaluate(tmp_path, StubRows(range(2)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = StubModel()
    with pytest.raises(UserError, match=message):
        run_evaluation(model, stub_evaluation(StubRows(range(3)), **changes), tmp_path)
    assert model.num_answers == 0
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_job_that_started_in_between_is_not_merged_with(tmp_path):
    """In a bucket, which has no locks, another job may write its `run.json` while this one predicts."""

    class Overtaken(StubModel):
        def answer(self, requests, generation_config, *, batch_size):
            run = json.loads((tmp_path / "run.json").read_text())
            run["settings"]["model.fingerprint"] = "beef"
            (tmp_path / "run.json").write_text(json.dumps(run))
            return super().answer(requests, generation_config, batch_size=batch_size)

    with pytest.raises(UserError, match=r'with model\.fingerprint="beef", not "f00d"'):
        run_evaluation(Overtaken(), stub_evaluation(StubRows(range(9))), tmp_path)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_predictions_without_settings_are_refused(tmp_path):
    evaluate(tmp_path, StubRows(range(2)))
    (tmp_path / "run.json").unlink()
    with pytest.raises(UserError, match=r"has predictions but no run\.json"):
        evaluate(tmp_path, StubRows(range(2)))


def test_run_json_records_what_was_run(tmp_path):
    evaluate(tmp_path, StubRows(range(3)), batch_size=2)
    evaluate(tmp_path, StubRows(range(3)), batch_size=1)
    evaluate(tmp_path, StubRows(range(3)), batch_size=1)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"] == SETTINGS | {"conditions": ["audio"], "sources": ["stub/test"]}
    assert [session["batch_size"] for session in run["sessions"]] == [2, 1]
    assert run["sessions"][0] == {"device": "none", "batch_size": 2, "prompt_sizes": [14, 28, 42]}
    counts = {"predictions": 3, "cut_at_max_new_tokens": 0, "truncated_clips": 0, "errors": {}}
    assert run["counts"] == counts | {"compilations_of_process_0": 2}
