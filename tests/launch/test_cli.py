"""The command line of every verb: errors are one line with exit code 2."""

from __future__ import annotations

import importlib
import pathlib
import sys

import jax
import pytest

from launch import cli
from salmonn_jax.errors import RunError, UserError

VERBS = sorted(p.stem for p in pathlib.Path(cli.__file__).parent.glob("*.py") if "cli.run(main)" in p.read_text())


def error_of(monkeypatch, capsys, verb: str, *words: str) -> str:
    """Runs `python -m launch.VERB WORDS` in this process. Returns its only line on stderr; the exit code must be 2."""
    monkeypatch.setattr(sys, "argv", [f"launch.{verb}", *words])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # some verbs set it
    with pytest.raises(SystemExit) as stopped:
        cli.run(importlib.import_module(f"launch.{verb}").main)
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_is_one_line(monkeypatch, capsys, verb):
    """Verbs with required arguments miss those first."""
    line = error_of(monkeypatch, capsys, verb, "--no-such\noption")
    assert line.startswith("error: ") and line.endswith(f"; see python -m launch.{verb} --help")


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("train", ["debug"], "the following arguments are required: --output"),
        ("train", ["debug", "--output", "r", "--steps", "3"], "unrecognized arguments: --steps"),
        *(
            ("train", ["debug", "--watchdog-minutes", text], f"argument --watchdog-minutes: '{text}': must be a number")
            for text in ("soon", "0", "-1", "nan", "inf")
        ),
        ("train", ["debug", "--model", ""], "a path is empty"),
        ("plan", ["debug", "--slices", "0"], "argument --slices: '0': must be a whole number of at least 1"),
        ("plan", ["debug", "--chips", "4.0"], "argument --chips: '4.0': must be a whole number of at least 1"),
        ("submit", ["gke", "debug", "--slices", "0"], "argument --slices: '0': must be a whole number of at least 1"),
        ("submit", ["gke", "debug", "--restarts", "-1"], "argument --restarts: '-1': must be a whole number of at"),
        ("prepare", ["inspect", "debug", "--batches", "0"], "argument --batches: '0': must be a whole number of at"),
        ("prepare", ["minicorpus", "--workers", "0"], "argument --workers: '0': must be a whole number of at least 1"),
        ("generate", ["--batch-size", "two"], "argument --batch-size: 'two': must be a whole number"),
        ("generate", ["--model"], "argument --model: expected one argument"),
        ("convert", [], "the following arguments are required: verb"),
        ("convert", ["to-onnx"], "argument verb: invalid choice: 'to-onnx'"),
        ("convert", ["to-jax", "llama", "--llm", "x"], "the following arguments are required: --output"),
        ("convert", ["to-jax", "salmonn", "--audio-tokens", "all"], "argument --audio-tokens: invalid choice: 'all'"),
        ("prepare", [], "the following arguments are required: VERB"),
        ("prepare", ["inspect", "debug", "--page", "x"], "unrecognized arguments: --page"),
        ("submit", ["slurm"], "argument backend: invalid choice: 'slurm'"),
    ],
)
def test_wrong_options_are_one_line(monkeypatch, capsys, verb, words, message):
    assert error_of(monkeypatch, capsys, verb, *words).startswith(f"error: {message}")


def test_an_error_of_a_subcommand_refers_to_its_help(monkeypatch, capsys):
    line = error_of(monkeypatch, capsys, "convert", "to-jax", "llama", "--llm", "x")
    assert line.endswith("; see python -m launch.convert to-jax llama --help")


@pytest.mark.parametrize(("error", "code"), [(UserError("a\nb.wav: empty"), 2), (RunError("a\r\nb.wav: empty"), 1)])
def test_a_line_break_in_a_message_is_a_space(capsys, error, code):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(fail)
    assert (stopped.value.code, capsys.readouterr().err) == (code, "error: a b.wav: empty\n")


def test_too_little_memory_of_a_device_is_one_line(capsys):
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 87276823336 bytes.\nmore")

    with pytest.raises(SystemExit) as stopped:
        cli.run(fail)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert line.startswith("error: INTERNAL: Out of memory allocating 87276823336 bytes.; choose a s")

    def fail_otherwise():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.run(fail_otherwise)
