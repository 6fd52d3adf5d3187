"""Evaluations in the training loop as a user sees them: they change no loss, and none is lost or made twice."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import sys
import time

import pytest

import salmonn_jax
from data_pipelines.stream.held_out import HeldOutData
from launch import cli, report, train
from salmonn_jax.model_directory import load_model
from tests.runs import copy_run, evaluations, losses

OPTIONS = ("eval_every=2", "data.eval_examples=5", "keep_best=eval/loss")


def run_command(monkeypatch, folder: pathlib.Path, *arguments: str) -> None:
    """Runs `launch.train debug` with these arguments in this process, in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["launch.train", "debug", *map(str, arguments)])
    cli.run(train.main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def evaluated(folder):
    """Returns a finished run with evaluations, and what its command printed."""
    said = folder / "said"
    with pytest.MonkeyPatch.context() as patch, said.open("w") as file:
        patch.setattr(sys, "stderr", file)
        run_command(patch, folder, "--output", "whole", *OPTIONS)
    return folder / "whole", said.read_text()


@pytest.mark.slow
def test_evaluations_change_no_loss(evaluated, debug_run):
    run, said = evaluated
    assert losses(run) == losses(debug_run)
    names = {f"eval/{name}{source}" for name in ("loss", "accuracy") for source in ("", "/tones", "/words")}
    assert [(step, set(values)) for step, values in evaluations(run).items()] == [(step, names) for step in (2, 4, 6)]
    assert "held-out examples (split test): tones 5, words 5\n" in said
    for step, values in evaluations(run).items():
        line = f"step {step}: held-out loss {values['eval/loss']:.3f}, token accuracy {values['eval/accuracy']:.1%}"
        assert line in said


def test_the_best_checkpoint_is_told_and_loaded(evaluated, debug_run):
    run, said = evaluated
    values = {step: values["eval/loss"] for step, values in evaluations(run).items()}
    best = min(values, key=values.get)
    checkpoint = f"whole/checkpoints/{best}"
    assert (
        f"best eval/loss: {values[best]:.4g} after step {best}; use this checkpoint with --model {checkpoint}" in said
    )
    assert "page: whole/index.html" in said
    latest, earlier = load_model(run), load_model(run / "checkpoints" / "4")
    assert latest.fingerprint == load_model(run / "checkpoints" / "6").fingerprint == load_model(debug_run).fingerprint
    assert earlier.fingerprint != latest.fingerprint
    assert salmonn_jax.load(run / "checkpoints" / "4").fingerprint == earlier.fingerprint
    with pytest.raises(salmonn_jax.UserError, match=r"5 is not whole \(it does not exist\); .* one of: 6, 4, 2"):
        load_model(run / "checkpoints" / "5")


def test_the_best_checkpoint_is_kept_beside_the_latest(folder, evaluated, monkeypatch, capsys):
    """Resumes after step 4, whose evaluation is not made again. The stored values make step 2 the best."""
    run = copy_run(evaluated[0], folder / "best", last_step=4)
    for step, loss in (("2", 0.5), ("4", 0.6)):
        (run / "checkpoints" / step / "metrics" / "metrics").write_text(json.dumps({"eval/loss": loss}))
    run_command(monkeypatch, folder, "--output", "best", *OPTIONS, "max_to_keep=1")
    kept = {path.name for path in (run / "checkpoints").iterdir() if path.name.isdecimal()}
    assert kept == {"2", "6"}
    assert losses(run) == losses(evaluated[0]) and evaluations(run) == evaluations(evaluated[0])
    assert "best eval/loss: 0.5 after step 2" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_during_an_evaluation(folder, evaluated, monkeypatch, capsys):
    """The checkpoint after step 4 is saved without the evaluation, which the next start makes."""
    run, read = copy_run(evaluated[0], folder / "stopped", last_step=2), HeldOutData.batches

    def batches(self, num_batches):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # until the thread that waits for signals has read it
        return read(self, num_batches)

    with monkeypatch.context() as patch:
        patch.setattr(HeldOutData, "batches", batches)
        with pytest.raises(SystemExit):
            run_command(patch, folder, "--output", "stopped", *OPTIONS, "--sigterm-exit-code", "0")
    assert "stopped: SIGTERM ended the run after step 4 of 6, which is saved" in capsys.readouterr().err
    values = run / "checkpoints" / "4" / "metrics"
    assert list(evaluations(run)) == [2] and list(losses(run)) == [1, 2, 3, 4] and not values.exists()
    run_command(monkeypatch, folder, "--output", "stopped", *OPTIONS)
    assert losses(run) == losses(evaluated[0])
    assert evaluations(run) == evaluations(evaluated[0])
    assert values.is_dir()  # it was the best, so the checkpoint was saved again


@pytest.mark.slow
def test_an_evaluation_after_the_last_step(folder, evaluated, monkeypatch):
    """`eval_every` is larger than the number of steps, in the continuation of a run without evaluations."""
    run = copy_run(evaluated[0], folder / "last", last_step=4)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if "eval/loss" not in line))
    shutil.rmtree(run / "checkpoints" / "4" / "metrics")
    run_command(monkeypatch, folder, "--output", "last", "eval_every=100", "data.eval_examples=5")
    assert evaluations(run) == {6: evaluations(evaluated[0])[6]}


def test_the_run_page(folder, evaluated, monkeypatch, capsys):
    page = (evaluated[0] / "index.html").read_text()
    for text in (
        "tones: loss",
        "words: token accuracy",
        "Gradient norm by module",
        "Share of examples",
        "Learning rate",
    ):
        assert f"<h3>{text}" in page
    assert "Step 6 of 6." in page and "held-out, step 4: " in page
    assert "<script" not in page and "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    monkeypatch.setattr(sys, "argv", ["launch.report", str(evaluated[0]), "--output", str(folder / "page.html")])
    cli.run(report.main)
    assert capsys.readouterr().out == f"page: {folder / 'page.html'}\n"
    assert (folder / "page.html").read_text() == page


def test_keep_best_needs_evaluations_of_a_known_metric(folder, monkeypatch, capsys):
    for options, message in (
        (["keep_best=eval/loss"], "keep_best=eval/loss: needs evaluations; set eval_every"),
        (["eval_every=2", "keep_best=eval/los"], "unknown metric in keep_best 'eval/los'; did you mean 'eval/loss'?"),
        (["eval_every=2", "keep_best=eval/loss/word"], "did you mean 'eval/loss/words'?"),
        (["eval_every=2", "data.eval_split=tets"], "no source has examples in the split data.eval_split=tets"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_command(monkeypatch, folder, "--output", "refused", *options)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (folder / "refused").exists()
