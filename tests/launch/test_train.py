"""`launch.train` as a user runs it: a killed run goes on with the same numbers, and bad input is told in one line."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import cli, train
from salmonn_jax.model_directory import load_model

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla")}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "launch.train", *map(str, arguments)]


def run(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def losses(folder: pathlib.Path) -> dict[int, tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run."""
    done = run("debug", "--output", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def test_a_killed_run_goes_on_with_the_same_losses(folder, whole):
    """Killed without warning after a checkpoint, then started again with the same command."""
    arguments = command("debug", "--output", "killed")
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (folder / "killed" / "checkpoints" / "2").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = run("debug", "--output", "killed", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stderr or losses(folder / "killed").keys() == {1, 2, 3, 4, 5, 6}
    assert losses(folder / "killed") == losses(whole)


def test_a_second_start_compiles_nothing_again(folder):
    """The train step is in the cache of compiled programs: the first start writes it there, the second reads it."""
    environment = ENVIRONMENT | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_LOG_COMPILES": "1",
    }

    def start(output: str) -> str:
        words = command("debug", "--output", output, "num_train_steps=1")
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "the first step ended" in done.stderr
        return done.stderr

    def kept() -> set[str]:
        return {path.name for path in (folder / "compiled").glob("jit_train_step*-cache")}

    hit = "Persistent compilation cache hit for 'jit_train_step'"
    assert hit not in start("cold") and len(kept()) == 1
    assert hit in start("warm") and len(kept()) == 1


def test_every_step_is_logged_once(whole):
    assert list(losses(whole)) == [1, 2, 3, 4, 5, 6]
    assert any((whole / "tensorboard").iterdir())


def test_a_finished_run_is_left_as_it_is(folder, whole):
    before = (whole / "metrics.jsonl").read_text()
    assert run("debug", "--output", "whole", cwd=folder).returncode == 0
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_run_goes_on_with_another_mesh(folder, whole):
    """From the checkpoint after step 2, on eight devices that cut the frozen weights; begun before data had buckets."""
    shutil.copytree(whole, folder / "moved")
    description = json.loads((folder / "moved" / "config.json").read_text())
    del description["run"]["data"]["buckets"]
    (folder / "moved" / "config.json").write_text(json.dumps(description))
    for later in ("4", "6"):
        shutil.rmtree(folder / "moved" / "checkpoints" / later)
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = command("debug", "--output", "moved", 'mesh={"fsdp": 4, "tensor": 2}')
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 2" in done.stderr
    ours, theirs = losses(folder / "moved"), losses(whole)
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        np.testing.assert_allclose(ours[step], values, rtol=1e-5, err_msg=str(step))


def test_a_run_starts_from_another_run(folder, whole):
    """The second run trains less than the first did, so it must keep what it does not train."""
    done = run(
        "debug", "--output", "second", "--model", "whole", "num_train_steps=1", 'trainable=["query_tokens"]', cwd=folder
    )
    assert done.returncode == 0, done.stderr
    first, second = load_model(folder / "whole").params, load_model(folder / "second").params
    for path, value in first.items():
        same = np.array_equal(value, second[path])
        assert same == (path != "query_tokens"), path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("debgu", "--output", "x"), "did you mean 'debug'"),
        (("debug", "--output", "x", "num_train_stepps=3"), "did you mean 'num_train_steps'"),
        (("debug", "--output", "x", "num_train_steps=many"), "num_train_steps must be int"),
        (
            ("debug", "--output", "x", "data.rows=12", 'mesh={"data": 8}'),
            "data.rows=12 does not divide over 8 data shards",
        ),
        (
            ("debug", "--output", "x", "data.streams=4", 'mesh={"data": 8}'),
            "data.streams=4 does not divide over 8 data shards",
        ),
        (("debug", "--output", "x", "data.packing=pac"), "did you mean 'pack'"),
        (("debug", "--output", "x", "data.mixture.wrods=1"), "did you mean 'words'"),
        (("debug", "--output", "x", "data.clips=24"), "data.clips=24 is more than data.rows=16"),
        (("debug", "--output", "x", "data.corpus=tonse"), "did you mean 'tones'"),
        (("debug", "--output", "x", "data.seq_len=20"), "set data.seq_len to at least"),
        (("debug", "--output", "x", 'trainable=["qformer/nothing"]'), "matches no parameter"),
        (("debug", "--output", "whole", "seed=1"), "another run: seed is 42, not 1"),
        (("debug", "--output", "x", "--model", "nowhere"), "nowhere"),
        (("debug", "--output", "occupied"), "holds something that is not a run"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(folder, whole, arguments, says, monkeypatch, capsys):
    (folder / "occupied").mkdir(exist_ok=True)
    (folder / "occupied" / "thesis.txt").write_text("years of work")
    kept = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != "x"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["launch.train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.run(train.main)
    told = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert says in told[-1]
    assert told[-1].startswith("error: ")
    assert before == {path: path.stat().st_mtime_ns for path in kept}
