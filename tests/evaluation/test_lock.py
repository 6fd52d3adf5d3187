"""Tests of the lock on the output directory of an evaluation."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.lock import LOCK_FILE, exclusive

HOLD = """
import pathlib, sys, time
from salmonn_jax.evaluation.lock import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def hold(directory: pathlib.Path) -> subprocess.Popen:
    """Starts a process that holds the lock of a directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, directory], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_lock_is_exclusive_until_its_job_is_killed(tmp_path):
    process = hold(tmp_path / "e")
    with pytest.raises(UserError, match=r"another job writes to .*/e; wait for its end, or choose another --output"):
        exclusive(tmp_path / "e").__enter__()
    process.kill()
    process.wait()
    assert (tmp_path / "e" / LOCK_FILE).exists()  # left by the kill, and no obstacle
    with exclusive(tmp_path / "e"):
        assert (tmp_path / "e" / LOCK_FILE).exists()
    assert not (tmp_path / "e" / LOCK_FILE).exists()


def test_a_bucket_is_not_locked(bucket):
    from salmonn_jax.paths import as_path

    with exclusive(as_path("gs://lab/e")), exclusive(as_path("gs://lab/e")):
        assert not bucket.files()
