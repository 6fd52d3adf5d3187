"""SIGTERM sets a request to stop, and a second one ends the process whatever it is doing."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from salmonn_jax.preemption import SIGTERM_EXIT_CODE, StopRequest

ROOT = pathlib.Path(__file__).parents[1]
# The main thread runs C code that no signal interrupts, as during compilation.
BUSY_PROGRAM = """
import hashlib
from salmonn_jax.preemption import StopRequest
with StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha512", b"", b"", 500_000_000)
"""


def wait_until(condition, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_sigterm_is_a_request_to_stop():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert not request.reached(0) and not request.is_immediate
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_until(lambda: request.reached(1)) and request.is_immediate
    assert signal.getsignal(signal.SIGTERM) is before
    with StopRequest() as request:
        assert not request.reached(0)


def test_other_signals_are_left_alone():
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of xdist ignore the signal
    try:
        _interrupt()
    finally:
        signal.signal(signal.SIGINT, previous)


def _interrupt() -> None:
    """Sends the interrupt of a user to this process, and expects Python's own exception."""
    with StopRequest() as request, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert not request.reached(0)


def test_a_second_sigterm_ends_a_busy_process():
    process = subprocess.Popen([sys.executable, "-c", BUSY_PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == SIGTERM_EXIT_CODE == 143
