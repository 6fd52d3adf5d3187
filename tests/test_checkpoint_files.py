"""Damaged checkpoints are found, reported and passed over."""

from __future__ import annotations

import errno
import pathlib
import shutil
from collections.abc import Callable

import pytest

from salmonn_jax import checkpoint_files
from salmonn_jax.errors import UserError
from salmonn_jax.model_directory import load_model
from tests.runs import copy_run


def array_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold the values of arrays."""
    return list(directory.rglob("d/*"))


def cut(path: pathlib.Path) -> None:
    """Keeps the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "no delta": (lambda step: shutil.rmtree(step / "delta"), "it has no delta"),
    "no optimizer": (lambda step: shutil.rmtree(step / "optimizer"), "it has no optimizer"),
    "no data": (lambda step: shutil.rmtree(step / "data"), "it has no data"),
    "no commit mark": (lambda step: (step / "commit_success.txt").unlink(), "it has no commit_success.txt"),
    "no metadata": (lambda step: (step / "delta" / "_METADATA").unlink(), "delta cannot be read"),
    "no array": (lambda step: [path.unlink() for path in array_files(step / "delta")], "delta cannot be read"),
    "cut array": (lambda step: [cut(path) for path in array_files(step / "delta")], "delta cannot be read"),
    "cut moments": (lambda step: [cut(path) for path in array_files(step / "optimizer")], "optimizer cannot be read"),
    "cut metadata": (lambda step: cut(step / "optimizer" / "_METADATA"), "optimizer/_METADATA is cut"),
    "cut array metadata": (
        lambda step: cut(step / "delta" / "array_metadatas" / "process_0"),
        "delta/array_metadatas/process_0 is cut",
    ),
    "cut stream states": (lambda step: cut(step / "data" / "0-of-1.json"), "data cannot be read"),
    "states of one of two processes": (
        lambda step: (step / "data" / "0-of-1.json").rename(step / "data" / "0-of-2.json"),
        "data cannot be read: [Errno 2]",
    ),
    "empty": (lambda step: [shutil.rmtree(step), step.mkdir()], "it has no commit_success.txt"),
}


def test_a_checkpoint_of_a_run_is_whole(debug_run):
    assert checkpoint_files.find_damage(debug_run / "checkpoints" / "6") is None


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(debug_run, tmp_path, name):
    damage, says = DAMAGES[name]
    step = shutil.copytree(debug_run / "checkpoints" / "6", tmp_path / "6")
    damage(step)
    found = checkpoint_files.find_damage(step)
    assert says in found and "\n" not in found


def test_a_damaged_checkpoint_is_passed_over(debug_run, tmp_path, capsys):
    """The two newest checkpoints are damaged in different ways; the model is that of the third."""
    run = copy_run(debug_run, tmp_path / "run", last_step=6)
    expected = load_model(copy_run(debug_run, tmp_path / "expected", last_step=2)).fingerprint
    DAMAGES["no delta"][0](run / "checkpoints" / "6")
    DAMAGES["cut moments"][0](run / "checkpoints" / "4")
    assert load_model(run).fingerprint == expected
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: ") and "checkpoints/6 is not whole (it has no delta)" in first
    assert "checkpoints/4 is not whole (optimizer cannot be read" in second


def test_no_checkpoint_is_whole(debug_run, tmp_path):
    run = copy_run(debug_run, tmp_path / "run", last_step=2)
    DAMAGES["no commit mark"][0](run / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"no checkpoint in .*/run/checkpoints is whole; .*delete that directory"):
        load_model(run)


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert checkpoint_files.newest_whole_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("UNAVAILABLE: Error reading gs://lab/run: CURL error"),
        ConnectionResetError("reset by peer"),
        MemoryError("Unable to allocate 8 GiB"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_a_failure_that_says_nothing_about_the_files_is_no_damage(debug_run, monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr(checkpoint_files.weights, "read_all", fail)
    with pytest.raises(OSError, match="checkpoints/6 cannot be read: "):
        checkpoint_files.find_damage(debug_run / "checkpoints" / "6")
