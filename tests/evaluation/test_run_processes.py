"""Tests of evaluations by several processes, and of their ends by SIGKILL and SIGTERM, with a stub model."""

from __future__ import annotations

import json
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from salmonn_jax.errors import RunError
from tests.evaluation.running import evaluate, evaluate_as, merged
from tests.evaluation.stub import StubRows

ROOT = pathlib.Path(__file__).parents[2]


def start(
    output: pathlib.Path, seconds: float, preexec_fn: Callable[[], object] | None = None, **environment: object
) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.evaluation.stub", str(output), "63", "4", str(seconds)]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
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


def test_an_evaluation_that_is_killed_ends_with_the_same_bytes(tmp_path):
    evaluate(tmp_path / "whole", StubRows(range(63)))
    kill_repeatedly(tmp_path / "killed", 2)
    assert merged(tmp_path / "killed") == merged(tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    evaluate(tmp_path / "whole", StubRows(range(63)))
    kill_repeatedly(tmp_path / "killed", 20)
    assert merged(tmp_path / "killed") == merged(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_ends_the_evaluation_and_the_same_command_resumes(tmp_path):
    """A limit on the size of files takes the place of a full disk: a write ends in the middle of a line."""
    limit = 2500
    process = start(tmp_path / "full", 0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert "OSError: [Errno 27] File too large" in process.communicate(timeout=120)[1]
    left = (tmp_path / "full" / "predictions-0.jsonl").read_bytes()
    assert len(left) == limit and not left.endswith(b"\n")
    evaluate(tmp_path / "full", StubRows(range(63)))
    evaluate(tmp_path / "whole", StubRows(range(63)))
    assert merged(tmp_path / "full") == merged(tmp_path / "whole")


@pytest.mark.slow
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
