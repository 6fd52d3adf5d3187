"""`launch.train` as a user runs it: a killed run resumes with the same losses, and bad input is one line."""

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
from salmonn_jax.checkpoint_files import find_damage
from salmonn_jax.model_directory import load_model
from salmonn_jax.training.metric_writer import FileMetricWriter
from tests.runs import copy_run, debug_preset, losses, shares, step_metrics

ROOT = pathlib.Path(__file__).parents[2]
CACHE_HIT = "Persistent compilation cache hit for 'jit_train_step'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def start_process(folder: pathlib.Path, *arguments: str, log: pathlib.Path, **environment: str) -> subprocess.Popen:
    """Starts `python -m launch.train` in `folder`; stderr, with a line for each compiled program, goes to `log`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_LOG_COMPILES": "1"} | environment
    words = [sys.executable, "-m", "launch.train", *map(str, arguments)]
    with log.open("w") as file:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=file)


def run_command(monkeypatch, folder: pathlib.Path, *arguments: str) -> None:
    """Runs `launch.train` with these arguments in this process, in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["launch.train", *map(str, arguments)])
    cli.run(train.main)


def test_a_killed_run_goes_on_with_the_same_losses(folder, debug_run, monkeypatch, capsys):
    """SIGKILL after a checkpoint, then the same command again. Both starts find the train step in the cache."""
    process = start_process(folder, "debug", "--output", "killed", log=folder / "killed.log")
    deadline = time.monotonic() + 600
    while not (folder / "killed" / "checkpoints" / "2").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    log = (folder / "killed.log").read_text()
    assert CACHE_HIT in log, log[-3000:]
    run_command(monkeypatch, folder, "debug", "--output", "killed")
    assert "killed: resuming from step" in capsys.readouterr().err
    assert losses(folder / "killed") == losses(debug_run)
    assert shares(folder / "killed") == shares(debug_run)


@pytest.mark.slow
def test_sigterm_saves_after_the_current_step_and_the_run_goes_on(folder, debug_run, monkeypatch, capsys):
    """SIGTERM arrives when step 2 is logged, while step 3 runs; the run has no regular checkpoint after step 3."""
    log = FileMetricWriter.log

    def send_sigterm(self, step, metrics):
        log(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # until the thread that waits for signals has read it

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(FileMetricWriter, "log", send_sigterm)
        run_command(patch, folder, "debug", "--output", "stopped", "--sigterm-exit-code", "0")
    assert stopped.value.code == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "SIGTERM" in line]
    assert said == ["stopped: SIGTERM ended the run after step 3 of 6, which is saved; the same command resumes it"]
    assert (folder / "stopped" / "checkpoints" / "3").is_dir()
    run_command(monkeypatch, folder, "debug", "--output", "stopped")
    assert "stopped: resuming from step 3" in capsys.readouterr().err
    assert losses(folder / "stopped") == losses(debug_run)


def test_a_run_goes_on_before_a_damaged_checkpoint(folder, debug_run, monkeypatch, capsys):
    """The newest checkpoint is renamed, and its step is saved again."""
    run = copy_run(debug_run, folder / "damaged", last_step=6)
    (run / "checkpoints" / "6.damaged-1").mkdir()
    (run / "checkpoints" / "6" / "commit_success.txt").unlink()
    run_command(monkeypatch, folder, "debug", "--output", "damaged")
    said = capsys.readouterr().err
    assert "warning: checkpoint damaged/checkpoints/6 is not whole (it has no commit_success.txt)" in said
    assert "6 is now 6.damaged-2" in said and "damaged: resuming from step 4" in said
    assert find_damage(run / "checkpoints" / "6") is None
    assert losses(run) == losses(debug_run)


def test_no_checkpoint_is_whole(folder, debug_run, monkeypatch, capsys):
    """A run is never started from the beginning without being asked to."""
    run = copy_run(debug_run, folder / "all damaged", last_step=2)
    shutil.rmtree(run / "checkpoints" / "2" / "delta")
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, folder, "debug", "--output", "all damaged")
    assert stopped.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("error: no checkpoint in all damaged/checkpoints is whole; ")
    assert (run / "checkpoints" / "2").is_dir() and losses(run) == losses(debug_run)


@pytest.mark.slow
def test_a_second_start_compiles_nothing_again(folder):
    """The first start writes the train step to the compilation cache, the second reads it."""

    def start(output: str) -> str:
        log, cache = folder / f"{output}.log", str(folder / "compiled")
        process = start_process(
            folder, "debug", "--output", output, "num_train_steps=1", log=log, JAX_COMPILATION_CACHE_DIR=cache
        )
        assert process.wait(600) == 0, log.read_text()
        assert "the first step ended" in log.read_text()
        return log.read_text()

    def kept() -> set[str]:
        return {path.name for path in (folder / "compiled").glob("jit_train_step*-cache")}

    assert CACHE_HIT not in start("cold") and len(kept()) == 1
    assert CACHE_HIT in start("warm") and len(kept()) == 1


def test_every_step_is_logged_once(debug_run):
    assert list(losses(debug_run)) == [1, 2, 3, 4, 5, 6]
    assert any((debug_run / "tensorboard").iterdir())


def test_logged_metrics(debug_run):
    """The names of docs/training.md. Seconds of checkpoints and compilation are logged where there are some."""
    modules = ("query_tokens", "qformer", "norms", "projection", "adapters")
    always = {"loss", "accuracy", "learning_rate", "data_wait_seconds", "gradient_norm"}
    always |= {f"{name}/{source}" for name in ("loss", "accuracy", "share") for source in ("tones", "words")}
    always |= {f"gradient_norm/{module}" for module in modules}
    always |= {f"{name}_per_second" for name in ("clips", "audio_seconds", "tokens", "examples")}
    logged = step_metrics(debug_run)
    seconds = {step: metrics.keys() - always for step, metrics in logged.items()}
    assert all(always <= metrics.keys() for metrics in logged.values())
    assert seconds.pop(1) == {"checkpoint_seconds", "compile_seconds"}
    assert seconds == {step: {"checkpoint_seconds"} if step in (3, 5) else set() for step in range(2, 7)}
    assert logged[6]["share/tones"] + logged[6]["share/words"] == pytest.approx(1)
    for metrics in logged.values():
        assert metrics["tokens_per_second"] > metrics["examples_per_second"] > metrics["clips_per_second"] > 0


@pytest.mark.slow
def test_a_diverged_step_ends_the_run_and_is_not_saved(folder, monkeypatch, capsys):
    """After the first update the weights are of size 1e20, so the loss of step 2 is not finite."""
    options = ("lr_schedule.init_lr=1e20", "lr_schedule.peak_lr=1e20", "save_every=1", "num_train_steps=4")
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, folder, "debug", "--output", "diverged", *options)
    assert stopped.value.code == 1
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith("error: the loss of step 2 is ") and "lower lr_schedule.peak_lr" in last_line
    assert list(losses(folder / "diverged")) == [1]
    saved = {path.name for path in (folder / "diverged" / "checkpoints").iterdir() if path.name.isdigit()}
    assert "2" not in saved and "1" in saved


def test_a_finished_run_is_left_as_it_is(folder, debug_run, monkeypatch):
    run = copy_run(debug_run, folder / "finished", last_step=6)
    before = (run / "metrics.jsonl").read_text()
    run_command(monkeypatch, folder, "debug", "--output", "finished")
    assert (run / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(folder, debug_run, monkeypatch, capsys):
    """Resumes after step 2 on a mesh that cuts the frozen weights, from a config.json without `data.buckets`.

    Runs that were started before that field existed have such a config.json.
    """
    run = copy_run(debug_run, folder / "moved", last_step=2)
    description = json.loads((run / "config.json").read_text())
    del description["recipe"]["data"]["buckets"]
    (run / "config.json").write_text(json.dumps(description))
    run_command(monkeypatch, folder, "debug", "--output", "moved", 'mesh={"data": 2, "fsdp": 2, "tensor": 2}')
    assert "resuming from step 2" in capsys.readouterr().err
    ours, theirs = losses(run), losses(debug_run)
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        np.testing.assert_allclose(ours[step], values, rtol=1e-5, err_msg=str(step))


@pytest.mark.slow
def test_a_run_starts_from_another_run(folder, debug_run):
    """The second run trains fewer parameters than the first did, and must keep what the first trained."""
    preset = debug_preset(folder / "tones", num_train_steps=1, trainable=("query_tokens",))
    train.train(preset, folder / "second", debug_run)
    first, second = load_model(debug_run).params, load_model(folder / "second").params
    for path, value in first.items():
        same = np.array_equal(value, second[path])
        assert same == (path != "query_tokens"), path


@pytest.fixture(scope="module")
def whole(folder, debug_run):
    """Returns a copy of a finished run in a folder that also holds a directory that is no run."""
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("years of work")
    return shutil.copytree(debug_run, folder / "whole")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("debgu", "--output", "x"), "did you mean 'debug'"),
        (("debug", "--output", "x", "num_train_stepps=3"), "did you mean 'num_train_steps'"),
        (("debug", "--output", "x", "num_train_steps=many"), 'num_train_steps="many": must be a valid integer'),
        (
            ("debug", "--output", "x", "data.rows=12", 'mesh={"data": 8}'),
            "data.rows=12: must be a multiple of streams=8",
        ),
        (
            ("debug", "--output", "x", "data.streams=4", 'mesh={"data": 8}'),
            "data.streams=4: must be a multiple of 8, the number of data shards",
        ),
        (
            ("debug", "--output", "x", "gradient_accumulation_steps=3"),
            "data.streams=8: must be a multiple of gradient_accumulation_steps=3",
        ),
        (
            ("debug", "--output", "x", "gradient_accumulation_steps=2", 'mesh={"data": 8}'),
            "gradient_accumulation_steps=2: must divide 1, the streams of each of the 8 data shards",
        ),
        (("debug", "--output", "x", "gradient_accumulation_steps=0"), "gradient_accumulation_steps=0: must be"),
        (("debug", "--output", "x", "data.packing=pac"), "must be 'pack' or 'pad'"),
        (("debug", "--output", "x", "data.mixture.wrods=1"), "did you mean 'words'"),
        (("debug", "--output", "x", "data.clips=24"), "data.clips=24: must be at most rows=16"),
        (("debug", "--output", "x", "data.corpus=tonse"), "did you mean 'tones'"),
        (("debug", "--output", "x", "data.seq_len=20"), "set data.seq_len to at least"),
        (("debug", "--output", "x", 'trainable=["qformer/nothing"]'), "matches no parameter"),
        (
            ("debug", "--output", "x", "ctc_weight=1", "data.max_transcript_tokens=4", "ctc_blank=64"),
            "ctc_blank=64: must be below model.llama.vocab_size=64",
        ),
        (
            ("debug", "--output", "x", "model.llama.vocab_size=10"),
            "of the tokenizer is outside the vocabulary of the language model, which has 10 tokens",
        ),
        (("debug", "--output", "whole", "seed=1"), "another run: seed is 42, not 1"),
        (("debug", "--output", "whole", "--model", "whole"), "started from random weights; omit --model"),
        (("debug", "--output", "x", "--model", "nowhere"), "nowhere"),
        (("debug", "--output", "occupied"), "holds something that is not a run"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(folder, whole, arguments, says, monkeypatch, capsys):
    kept = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != "x"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    with pytest.raises(SystemExit) as stopped:
        run_command(monkeypatch, folder, *arguments)
    told = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert says in told[-1]
    assert told[-1].startswith("error: ")
    assert before == {path: path.stat().st_mtime_ns for path in kept}
