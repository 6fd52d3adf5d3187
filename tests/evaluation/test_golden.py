"""`launch.evaluate` with the golden model: equal answers on other devices, and equal bytes after twenty kills."""

from __future__ import annotations

import json
import pathlib
import random
import signal
import time

import pytest

from salmonn_jax.evaluation.predictions import read_predictions
from tests.conversion.golden_files import convert_arguments
from tests.golden import MINI
from tests.test_distributed import finish, start

NUM_KILLS = 20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with the golden model, and a manifest of 48 clips in two orders: `m.jsonl` in `0` and in `1`."""
    from launch import convert

    MINI.require()
    folder = tmp_path_factory.mktemp("golden")
    convert.main(convert_arguments(folder / "model"))
    prompts = ("Describe the audio.", "What is said?", "What is heard?", "What is played?")
    lines = [
        {
            "id": f"{clip} {number}",
            "audio": {"path": str(MINI.clip_path(clip)), "start": number / 16},
            "answer": f"answer {number}",
            "task": "sound",
            "prompt": prompts[number % len(prompts)],
        }
        for clip in range(3)
        for number in range(16)
    ]
    for order in range(2):
        (folder / str(order)).mkdir()
        (folder / str(order) / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        random.Random(order).shuffle(lines)
    return folder


def evaluate(folder: pathlib.Path, output: str, *words: object, order: int = 0, **where: int) -> list:
    """Starts an evaluation of the manifest in one of its orders, and returns its processes."""
    words = ("--model", folder / "model", "--manifest", folder / str(order) / "m.jsonl", "--output", output, *words)
    return start(folder, "launch.evaluate", *words, "--max-new-tokens", 12, "--no-preflight", **where)


def answers(folder: pathlib.Path, output: str) -> dict[str, tuple[str, int, str]]:
    """Returns text, number of tokens and end of each answer."""
    predictions = read_predictions(folder / output / "predictions.jsonl")
    return {p.id: (p.prediction, p.num_tokens, p.finish_reason) for p in predictions}


def bytes_of(folder: pathlib.Path, output: str) -> bytes:
    return (folder / output / "predictions.jsonl").read_bytes()


def test_devices_processes_batch_sizes_and_orders_have_equal_answers(folder):
    """Four beams in float32: on one device, on eight with the mesh data=8, and on two processes with four each."""
    configurations = {
        "1 device, batch 1": {"batch": 1, "processes": 1, "devices": 1},
        "1 device, batch 8": {"batch": 8, "processes": 1, "devices": 1, "order": 1},
        "8 devices, batch 1": {"batch": 1, "processes": 1, "devices": 8},
        "8 devices, batch 8": {"batch": 8, "processes": 1, "devices": 8},
        "8 devices, batch 8, shuffled": {"batch": 8, "processes": 1, "devices": 8, "order": 1},
        "2 processes, batch 8": {"batch": 8, "processes": 2, "devices": 8, "order": 1},
    }
    for name, where in configurations.items():
        finish(folder, evaluate(folder, name, "--batch-size", where.pop("batch"), **where))
    first = answers(folder, "1 device, batch 1")
    assert len(first) == 48 and len(set(first.values())) > 24
    for name in configurations:
        assert answers(folder, name) == first, name
    assert bytes_of(folder, "8 devices, batch 8, shuffled") == bytes_of(folder, "8 devices, batch 8")
    meshes = {
        name: json.loads((folder / name / "run.json").read_text())["sessions"][0]["mesh"]["data"]
        for name in configurations
    }
    assert list(meshes.values()) == [1, 1, 8, 8, 8, 4]


@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_with_a_model(folder, processes):
    """Every fourth SIGKILL comes before the first prediction of its start, the others shortly after it."""
    where = {"processes": processes, "devices": processes}
    words = ("--num-beams", 1, "--batch-size", 2)
    began = time.monotonic()
    started = evaluate(folder, f"whole {processes}", *words, **where)
    wait_for_growth(folder / f"whole {processes}", started)
    seconds_to_start = time.monotonic() - began
    finish(folder, started)
    output, rng = f"killed {processes}", random.Random(processes)
    for kill in range(NUM_KILLS):
        started = evaluate(folder, output, *words, **where)
        if kill % 4:
            wait_for_growth(folder / output, started)
            time.sleep(rng.uniform(0, 0.05))
        else:
            time.sleep(rng.uniform(0, 0.8 * seconds_to_start))
        rng.shuffle(started)
        for process in started:
            process.send_signal(signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.05))
        assert -signal.SIGKILL in [process.wait() for process in started], f"kill {kill} came too late"
    finish(folder, evaluate(folder, output, *words, **where))
    assert bytes_of(folder, output) == bytes_of(folder, f"whole {processes}")
    left = {path.name for path in (folder / output).iterdir() if not path.name.endswith(".unfinished")}
    assert left == {path.name for path in (folder / f"whole {processes}").iterdir()}


def wait_for_growth(output: pathlib.Path, started: list) -> None:
    """Waits until an evaluation has written another prediction, or has ended."""

    def size() -> int:
        return sum(path.stat().st_size for path in output.glob("predictions-*.jsonl"))

    before = size()
    while size() <= before and all(process.poll() is None for process in started):
        time.sleep(0.005)
