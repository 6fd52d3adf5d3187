"""Two processes on one machine, joined by gloo: they train, save, resume and evaluate, and none waits for ever."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from launch.train import train
from salmonn_jax import distributed, model_directory
from salmonn_jax.errors import UserError
from tests.runs import copy_run, debug_preset, evaluations, losses

ROOT = pathlib.Path(__file__).parents[1]
DEADLINE = 600  # seconds; two processes on two busy cores compile slowly


# Three held-out examples of each source: the four streams of the second process have two of the six, one each.
EVALUATIONS = ("eval_every=4", "data.eval_examples=3", "keep_best=eval/loss")


def start(folder: pathlib.Path, *words: object, processes: int = 2, devices: int = 8) -> list[subprocess.Popen]:
    """Starts the same command as several processes that share `devices` fake devices equally."""
    port = free_port()
    started = []
    for index in range(processes):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        }
        if processes > 1:
            environment |= {
                "COORDINATOR_ADDRESS": f"localhost:{port}",
                "PROCESS_COUNT": str(processes),
                "PROCESS_ID": str(index),
            }
        command = [sys.executable, "-m", *map(str, words)]
        with (folder / f"process-{index}.log").open("w") as log:
            started.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
    return started


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def finish(folder: pathlib.Path, started: list[subprocess.Popen]) -> None:
    """Waits for processes and asserts that each ended well."""
    for index, process in enumerate(started):
        assert process.wait(DEADLINE) == 0, (folder / f"process-{index}.log").read_text()[-3000:]


def assert_close_losses(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Asserts that two runs have the same losses up to the order of sums."""
    ours, theirs = losses(ours), losses(theirs)
    assert list(ours) == list(theirs) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def whole(folder):
    """Returns an uninterrupted run of two processes, with evaluations."""
    finish(folder, start(folder, "launch.train", "debug", "--output", "whole", *EVALUATIONS))
    return folder / "whole"


@pytest.mark.slow
def test_the_run_is_written_once(folder, whole):
    assert list(losses(whole)) == [1, 2, 3, 4, 5, 6]
    assert "process 1 of 2: 4 of 8 devices" in (folder / "process-1.log").read_text()
    assert "the first step ended" in (folder / "process-0.log").read_text()
    assert not list(whole.glob(".preflight*"))


@pytest.mark.slow
def test_one_process_has_the_losses_of_two(whole, debug_run):
    """Both runs have eight devices in all and read the same batches. One of them has evaluations."""
    assert_close_losses(debug_run, whole)


@pytest.mark.slow
def test_one_process_has_the_evaluations_of_two(folder, whole):
    """One process evaluates the checkpoint after step 4, where the evaluation of two processes was due."""
    assert "held-out examples (split test): tones 3, words 3" in (folder / "process-0.log").read_text()
    run = copy_run(whole, folder / "evaluated", last_step=4)
    shutil.rmtree(run / "checkpoints" / "4" / "metrics")
    preset = debug_preset(folder / ".cache" / "tones", eval_every=4, keep_best="eval/loss", num_train_steps=6)
    data = dataclasses.replace(preset.recipe.data, eval_examples=3)
    train(dataclasses.replace(preset, recipe=dataclasses.replace(preset.recipe, data=data)), run, None)
    ours, theirs = evaluations(run), evaluations(whole)
    assert list(ours) == list(theirs) == [4, 6]
    for step, values in theirs.items():
        assert ours[step] == pytest.approx(values, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_fewer_devices_have_the_losses_of_eight(folder, whole, devices):
    finish(folder, start(folder, "launch.train", "debug", "--output", f"on {devices}", processes=1, devices=devices))
    assert_close_losses(folder / f"on {devices}", whole)


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(folder, whole, capsys):
    """Checks that after step 2 the stream states of both processes are read by one."""
    run = copy_run(whole, folder / "moved", last_step=2)
    assert sorted(path.name for path in (run / "checkpoints" / "2" / "data").glob("*.json")) == [
        "0-of-2.json",
        "1-of-2.json",
    ]
    train(debug_preset(folder / ".cache" / "tones"), run, None)
    assert "resuming from step 2" in capsys.readouterr().err
    assert_close_losses(run, whole)


@pytest.mark.slow
def test_two_processes_fill_one_encoder_cache(folder, whole):
    """Each encodes half of the clips on its own devices, and reads the frames of both."""
    finish(folder, start(folder, "launch.train", "debug", "--output", "cached", "data.encoder_cache=store"))
    assert "60 encoder windows of the data, 60 encoded now; it holds 60" in (folder / "process-0.log").read_text()
    assert len(list((folder / "store").glob("frames-*.array_record"))) == 2
    assert_close_losses(folder / "cached", whole)


@pytest.mark.slow
def test_one_process_is_killed_and_the_other_ends_with_a_message(folder, whole):
    """Checks that the same command then resumes, with the losses of the uninterrupted run."""
    words = ("launch.train", "debug", "--output", "killed", "--watchdog-minutes", "1")
    started = start(folder, *words)
    begin = time.monotonic()
    while not (folder / "killed" / "checkpoints" / "2").exists() and time.monotonic() < begin + DEADLINE:
        time.sleep(0.01)
    started[1].send_signal(signal.SIGKILL)
    assert started[0].wait(90) != 0
    told = (folder / "process-0.log").read_text()
    assert "error: process 0 of 2 gave up" in told or "error: gave up after 60 s of waiting for a step" in told
    finish(folder, start(folder, *words))
    assert losses(folder / "killed") == losses(whole)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_the_same_step(folder, whole):
    """SIGTERM arrives during the start. The same command then resumes, with the losses of the uninterrupted run."""
    words = ("launch.train", "debug", "--output", "stopped")
    started = start(folder, *words)
    begin = time.monotonic()
    while "process 1 of 2" not in (folder / "process-1.log").read_text() and time.monotonic() < begin + DEADLINE:
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    finish(folder, started)
    (said,) = re.findall("stopped: SIGTERM ended the run after step (.) of 6", (folder / "process-0.log").read_text())
    assert (folder / "stopped" / "checkpoints" / said / "data" / "1-of-2.json").is_file()
    finish(folder, start(folder, *words))
    assert losses(folder / "stopped") == losses(whole)


EVALUATE = ("--corpus", "tones", "--data-dir", ".cache/tones", "--splits", "test", "--conditions", "audio", "silence")
EVALUATE += ("--num-beams", "1", "--max-new-tokens", "3", "--batch-size", "4", "--no-preflight")


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(folder, whole):
    """Two processes with four devices each, and one process with four."""
    for name, options in (("by two", {}), ("by one", {"processes": 1, "devices": 4})):
        finish(folder, start(folder, "launch.evaluate", "--model", whole, "--output", name, *EVALUATE, **options))
    one, two = folder / "by one", folder / "by two"
    assert (two / "predictions.jsonl").read_bytes() == (one / "predictions.jsonl").read_bytes()
    assert (two / "predictions.jsonl").read_bytes().count(b"\n") == 24
    assert (two / "scores.json").read_text() == (one / "scores.json").read_text()
    rows = [json.loads(line)["rows"] for i in (0, 1) for line in (two / f"timing-{i}.jsonl").read_text().splitlines()]
    assert sum(rows) == 24 and all((two / f"timing-{i}.jsonl").read_text() for i in (0, 1))
    assert {path.name for path in two.iterdir()} >= {"run.json", "index.html"}
    assert not list(two.glob("predictions-*")) and not list(two.glob("stop-*"))


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(folder, whole):
    words = ("launch.evaluate", "--model", whole, "--output", "evaluation", *EVALUATE)
    started = start(folder, *words)
    parts = [folder / "evaluation" / f"predictions-{i}.jsonl" for i in (0, 1)]
    begin = time.monotonic()
    while not any(part.exists() and part.read_bytes() for part in parts) and time.monotonic() < begin + DEADLINE:
        time.sleep(0.01)
    for process in started:
        process.kill()
        process.wait()
    finish(folder, start(folder, *words, processes=1, devices=4))
    finish(
        folder,
        start(folder, "launch.evaluate", "--model", whole, "--output", "again", *EVALUATE, processes=1, devices=4),
    )
    again = (folder / "again" / "predictions.jsonl").read_bytes()
    assert (folder / "evaluation" / "predictions.jsonl").read_bytes() == again


@pytest.mark.slow
def test_what_two_processes_saved_is_read_by_one_on_another_mesh(whole):
    from salmonn_jax.sharding import Placement, make_mesh

    plain = model_directory.load_model(whole)
    spread = model_directory.load_model(whole, Placement(make_mesh({"fsdp": 4, "tensor": 2})))
    assert plain.fingerprint == spread.fingerprint
    for path, value in plain.params.items():
        np.testing.assert_array_equal(jax.device_get(spread.params[path]), value, err_msg=path)


def test_a_process_alone_gives_up_by_the_deadline():
    program = "from salmonn_jax import distributed; distributed.initialize(3)"
    address = f"localhost:{free_port()}"
    environment = os.environ | {"COORDINATOR_ADDRESS": address, "PROCESS_COUNT": "2", "PROCESS_ID": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == distributed.PEER_LOST_EXIT_CODE
    assert "gave up after 3 s of joining the other processes; was the command started on every host?" in done.stderr


def test_an_environment_that_is_set_in_part(monkeypatch):
    monkeypatch.setenv("PROCESS_ID", "1")
    with pytest.raises(UserError, match="COORDINATOR_ADDRESS and PROCESS_COUNT must be set too"):
        distributed.initialize()


def test_the_watchdog_ends_what_does_not_come_back(capfd):
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    watchdog = distributed.Watchdog(0.3, "waiting for a step to end", end)
    for _ in range(5):  # as long as something happens it is silent
        time.sleep(0.15)
        watchdog.heartbeat()
    assert not ended.is_set()
    assert ended.wait(5)
    told = capfd.readouterr().err
    assert "error: gave up after 0 s of waiting for a step to end" in told
    assert "test_the_watchdog_ends" in told  # the stack of the thread that hangs
    assert codes == [distributed.PEER_LOST_EXIT_CODE]


def test_what_ends_in_time_is_left_alone(capfd):
    with distributed.deadline(0.2, "something short"):
        pass
    time.sleep(0.4)
    assert "gave up" not in capfd.readouterr().err


def test_preflight_on_one_host(tmp_path, capsys):
    distributed.preflight(tmp_path / "new", timeout_seconds=60)
    assert "process 0 of 1: 8 of 8 devices (cpu)" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


def test_storage_that_is_no_storage(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        distributed.preflight(tmp_path / "file", timeout_seconds=60)
    # The other process writes to a disk of its own.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", lambda name, seconds: None)
    with pytest.raises(UserError, match=r"sees the files of only 1 of 2 processes in .*; it must be shared"):
        distributed.preflight(tmp_path / "own", timeout_seconds=60)
