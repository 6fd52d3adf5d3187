"""Tests of evaluations with a stub model: N predictions for N rows, restarts, refusals, errors and preflight."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from salmonn_jax import distributed
from salmonn_jax.errors import RunError, UserError
from salmonn_jax.evaluation.predict import READ_AHEAD_BATCHES
from salmonn_jax.evaluation.predictions import merge_predictions, read_predictions
from salmonn_jax.evaluation.run import Evaluation, run_evaluation
from tests.evaluation.stub import SETTINGS, StubModel, StubRows, stub_evaluation

ROOT = pathlib.Path(__file__).parents[2]


def merged(output: pathlib.Path) -> bytes:
    return (output / "predictions.jsonl").read_bytes()


def evaluate(output: pathlib.Path, rows: StubRows, model: StubModel | None = None, **options) -> StubModel:
    """Runs an evaluation to its end and returns the model."""
    model = model or StubModel()
    assert run_evaluation(model, stub_evaluation(rows, **options), output)
    return model


class Processes:
    """Replaces the functions of `distributed` in threads, each of which stands for a process."""

    def __init__(self, count: int):
        self._count, self._barrier = count, threading.Barrier(count, timeout=60)
        self._local, self._arrays = threading.local(), [None] * count

    def process_shard(self) -> tuple[int, int]:
        return self._local.index, self._count

    def is_main_process(self) -> bool:
        return self._local.index == 0

    def barrier(self, name: str, timeout_seconds: float = 0) -> None:
        self._barrier.wait()

    def sum_over_processes(self, array: np.ndarray) -> np.ndarray:
        self._arrays[self._local.index] = array
        self._barrier.wait()
        return sum(self._arrays[1:], self._arrays[0])

    def run(self, index: int, model: StubModel, evaluation: Evaluation, output: pathlib.Path) -> bool:
        self._local.index = index
        return run_evaluation(model, evaluation, output)


def evaluate_as(count: int, output: pathlib.Path, rows: StubRows, **options) -> list[StubModel]:
    """Runs an evaluation as several processes at the same time, and returns the model of each."""
    processes, models = Processes(count), [StubModel() for _ in range(count)]
    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(count) as pool:
        for name in ("process_shard", "is_main_process", "barrier", "sum_over_processes"):
            patch.setattr(distributed, name, getattr(processes, name))
        evaluation = stub_evaluation(rows, **options)
        ends = [pool.submit(processes.run, i, model, evaluation, output) for i, model in enumerate(models)]
    failures = [end.exception() for end in ends if end.exception()]
    if failures:
        assert len(failures) == count and all(isinstance(failure, RunError) for failure in failures)
        raise failures[0]
    return models


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


class DeafModel(StubModel):
    def text(self, prompt: str, audio: bytes) -> str:
        return super().text(prompt, b"")


class EmptyModel(StubModel):
    def text(self, prompt: str, audio: bytes) -> str:
        return " "


class ConstantModel(StubModel):
    def text(self, prompt: str, audio: bytes) -> str:
        return "the same"


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


def test_a_restart_with_other_processes_divides_what_is_missing(tmp_path):
    rows = StubRows(range(63), dict.fromkeys(range(20, 30), "unreadable"), num_prompts=1)
    with pytest.raises(RunError, match="more than --max-failures 2"):
        evaluate_as(3, tmp_path / "eval", rows, max_failures=2, preflight=False)
    models = evaluate_as(2, tmp_path / "eval", StubRows(range(63), num_prompts=1))
    assert 0 < sum(model.num_answers for model in models) < 63
    evaluate(tmp_path / "whole", StubRows(range(63), num_prompts=1))
    assert merged(tmp_path / "eval") == merged(tmp_path / "whole")


def test_a_process_that_stops_stops_the_others(tmp_path):
    """The processes of this test have one failure each at most, but for the one that stops."""
    rows = StubRows(range(300), dict.fromkeys(range(300), "missing"), num_prompts=1)
    with pytest.raises(RunError, match="predictions failed, more than --max-failures 4"):
        evaluate_as(2, tmp_path, rows, max_failures=4, batch_size=1)
    assert sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("predictions-*")) < 100
    assert not (tmp_path / "predictions.jsonl").exists()


def test_a_process_that_has_ended_waits_for_the_others(tmp_path):
    """One of two processes fails. The other one, which has one row and no failure, must not merge."""
    with pytest.raises(RunError, match="1 predictions failed, more than --max-failures 0"):
        evaluate_as(2, tmp_path, StubRows(range(2), {1: "missing"}), max_failures=0, batch_size=1)
    assert not (tmp_path / "predictions.jsonl").exists()


def start(output: pathlib.Path, seconds: float, **environment: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.evaluation.stub", str(output), "63", "4", str(seconds)]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def last_line(process: subprocess.Popen) -> str:
    """Waits for the end of a process and returns its last line; gloo writes others."""
    return process.communicate(timeout=120)[0].splitlines()[-1]


def start_two(output: pathlib.Path, seconds: float) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [start(output, seconds, COORDINATOR_ADDRESS=address, PROCESS_COUNT=2, PROCESS_ID=i) for i in (0, 1)]


def wait_for_lines(process: subprocess.Popen, output: pathlib.Path, num_lines: int) -> None:
    """Waits until a process has written so many lines."""
    path = output / "predictions-0.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < num_lines):
        time.sleep(0.002)


def kill_repeatedly(output: pathlib.Path, num_kills: int) -> None:
    """Kills an evaluation again and again, at random times after its first line, and then lets it end."""
    rng = random.Random(num_kills)
    for kill in range(num_kills):
        process = start(output, 0.01)
        wait_for_lines(process, output, 1 + kill * 60 // num_kills)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(output, 0)
    assert process.communicate(timeout=120)[0] == "finished\n"


def test_an_evaluation_that_is_killed_ends_with_the_same_bytes(tmp_path):
    evaluate(tmp_path / "whole", StubRows(range(63)))
    kill_repeatedly(tmp_path / "killed", 2)
    assert merged(tmp_path / "killed") == merged(tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    evaluate(tmp_path / "whole", StubRows(range(63)))
    kill_repeatedly(tmp_path / "killed", 20)
    assert merged(tmp_path / "killed") == merged(tmp_path / "whole")


def test_two_processes_stop_at_sigterm_and_go_on(tmp_path):
    """SIGTERM at one of two processes, which are joined by gloo, stops both. Then both go on to the end."""
    evaluate(tmp_path / "whole", StubRows(range(63)))
    started = start_two(tmp_path / "two", 0.1)
    wait_for_lines(started[0], tmp_path / "two", 1)
    started[1].send_signal(signal.SIGTERM)
    assert [last_line(process) for process in started] == ["stopped", "stopped"]
    assert not (tmp_path / "two" / "predictions.jsonl").exists()
    assert [last_line(process) for process in start_two(tmp_path / "two", 0)] == ["finished", "finished"]
    assert merged(tmp_path / "two") == merged(tmp_path / "whole")


def test_sigterm_ends_the_evaluation_after_a_batch(tmp_path):
    process = start(tmp_path, 0.2)
    wait_for_lines(process, tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0] == "stopped\n"
    lines = (tmp_path / "predictions-0.jsonl").read_bytes().splitlines()
    assert 4 <= len(lines) < 63 and all(map(json.loads, lines))
