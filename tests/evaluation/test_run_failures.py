"""Tests of evaluations in which clips or prompts cannot be used, or the model does not work, with a stub model."""

from __future__ import annotations

import json

import pytest

from salmonn_jax.errors import RunError
from salmonn_jax.evaluation.predictions import read_predictions
from salmonn_jax.evaluation.run import run_evaluation
from tests.evaluation.running import evaluate, merged
from tests.evaluation.stub import StubModel, StubRows, stub_evaluation


class DeafModel(StubModel):
    def text(self, prompt: str, audio: bytes) -> str:
        return super().text(prompt, b"")


class EmptyModel(StubModel):
    def text(self, prompt: str, audio: bytes) -> str:
        return " "


class ConstantModel(StubModel):
    def text(self, prompt: str, audio: bytes) -> str:
        return "the same"


def test_errors_are_recorded_and_tried_again(tmp_path, capsys):
    rows = StubRows(range(9), {3: "undecodable", 5: "missing"})
    evaluate(tmp_path, rows)
    assert "9 predictions, 2 failed (missing 1, undecodable 1)" in capsys.readouterr().err
    by_id = {prediction.id: prediction for prediction in read_predictions(tmp_path / "predictions.jsonl")}
    failed = by_id["row-3"]
    assert (failed.prediction, failed.finish_reason, failed.num_tokens, failed.windows) == ("", "error", 0, [])
    assert failed.error == "undecodable: clip 3 is undecodable"
    before = merged(tmp_path)
    assert evaluate(tmp_path, rows).num_answers == 0
    assert merged(tmp_path) == before
    assert evaluate(tmp_path, StubRows(range(9), {5: "missing"})).num_answers == 1  # the file was repaired
    assert json.loads((tmp_path / "run.json").read_text())["counts"]["errors"] == {"missing": 1}
    evaluate(tmp_path / "whole", StubRows(range(9)))
    evaluate(tmp_path, StubRows(range(9)))
    assert merged(tmp_path) == merged(tmp_path / "whole")


def test_a_prompt_that_is_too_long_is_an_error_of_its_row(tmp_path):
    evaluate(tmp_path, StubRows(range(90), num_prompts=80), max_failures=20)
    errors = [prediction.error for prediction in read_predictions(tmp_path / "predictions.jsonl") if prediction.error]
    assert errors == 9 * ["prompt: 1001 tokens are too many; shorten the prompt"]


def test_too_many_failures_end_the_evaluation_and_keep_what_was_made(tmp_path):
    rows = StubRows(range(63), dict.fromkeys(range(20, 40), "unreadable"), num_prompts=1)
    with pytest.raises(
        RunError, match=r"predictions failed, more than --max-failures 3; the last is that of 'row-\d+'"
    ):
        run_evaluation(StubModel(), stub_evaluation(rows, max_failures=3), tmp_path)
    num_made = len((tmp_path / "predictions-0.jsonl").read_bytes().splitlines())
    assert 4 <= num_made < 63
    evaluate(tmp_path, rows, max_failures=20)
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 63


def test_an_answer_that_is_not_finite_is_an_error(tmp_path):
    class BrokenModel(StubModel):
        def answer(self, requests, generation_config, *, batch_size):
            answers = super().answer(requests, generation_config, batch_size=batch_size)
            return [answer._replace(score=float("nan")) for answer in answers]

    evaluate(tmp_path, StubRows(range(2)), BrokenModel())
    assert {p.error.partition(":")[0] for p in read_predictions(tmp_path / "predictions.jsonl")} == {"not finite"}


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (EmptyModel, "the first 16 answers are all empty"),
        (ConstantModel, "the first 16 answers are all 'the same'"),
        (DeafModel, "the first 16 answers depend on the prompt, but not on the clip"),
    ],
)
def test_preflight_stops_a_model_that_does_not_work(tmp_path, model, fault):
    rows = StubRows(range(63))
    with pytest.raises(RunError, match=f"{fault}; likely causes: another version of Vicuna .*--no-preflight continues"):
        run_evaluation(model(), stub_evaluation(rows), tmp_path)
    assert len((tmp_path / "predictions-0.jsonl").read_bytes().splitlines()) == 16
    evaluate(tmp_path, rows, model(), preflight=False)
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 63


def test_preflight_does_not_judge_few_answers_or_silence(tmp_path):
    evaluate(tmp_path / "few", StubRows(range(3)), EmptyModel())
    evaluate(tmp_path / "silence", StubRows(range(9)), ConstantModel(), conditions=("silence",))
