"""Fixtures of the tests of `launch.evaluate`: a folder with clips, and a function that runs the command."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest
import soundfile

from launch import cli
from launch import evaluate as verb
from tests.launch.evaluations import GREEDY


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with four clips of half a second; the window of the debug run has one second."""
    for k in range(4):
        samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * k) * np.arange(8000) / 16_000)
        soundfile.write(tmp_path / f"{k}.wav", samples, 16_000)
    return tmp_path


@pytest.fixture
def evaluate(debug_run, monkeypatch):
    """Returns a function that runs `python -m launch.evaluate` with the debug run and returns its exit code."""

    def run(output: pathlib.Path, *words: object, greedy: bool = True) -> int:
        words = ["--model", debug_run, "--output", output, *(GREEDY if greedy else ()), *words]
        monkeypatch.setattr(sys, "argv", ["launch.evaluate", *map(str, words)])
        try:
            cli.run(verb.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run
