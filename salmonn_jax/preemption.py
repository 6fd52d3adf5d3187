"""SIGTERM as the request to save and stop. Schedulers send it before they take a machine away."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils

SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class SigtermListener:
    """Context manager in which SIGTERM sets `received`. A second SIGTERM ends the process at once.

    A thread receives the signals: Python's own handlers would wait while the main thread compiles or waits for a
    device. It must be used in the main thread; in other threads signals are not received.
    """

    def __init__(self):
        self._received = threading.Event()

    @property
    def received(self) -> bool:
        """Whether SIGTERM has arrived."""
        return self._received.is_set()

    def __enter__(self) -> Self:
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            read_end, self._write_end = os.pipe()
            os.set_blocking(self._write_end, False)
            threading.Thread(target=self._listen, args=(read_end,), daemon=True).start()
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: None)
            # The interpreter's C handler writes the number of each signal to this file, whatever the main thread does.
            self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listens:
            signal.set_wakeup_fd(self._previous_fd)
            signal.signal(signal.SIGTERM, self._previous_handler)
            os.close(self._write_end)  # ends the thread

    def _listen(self, read_end: int) -> None:
        with open(read_end, "rb", buffering=0) as signals:
            while received := signals.read(1):
                if received[0] != signal.SIGTERM:
                    continue
                if self._received.is_set():
                    os._exit(SIGTERM_EXIT_CODE)
                self._received.set()


class StopRequest:
    """Context manager in which SIGTERM asks the training loop to stop. A second SIGTERM ends the process at once.

    In a job with several processes JAX receives the signal, tells the other processes, and lets all of them agree on
    the step after which they stop. Until that step, it also swallows further signals. In a single process, a
    `SigtermListener` receives it.
    """

    def __enter__(self) -> Self:
        self._listener = contextlib.ExitStack()
        self._signal = SigtermListener()
        if jax.process_count() == 1:
            self._listener.enter_context(self._signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()

    @property
    def is_immediate(self) -> bool:
        """Whether SIGTERM has arrived in a job of one process. Several processes stop after a step, not within it."""
        return self._signal.received

    def reached(self, step: int) -> bool:
        """Returns whether to stop before step number `step` is started. All processes call it before every step."""
        if self._signal.received:
            return True
        if jax.process_count() == 1 or not multihost_utils.reached_preemption_sync_point(step):
            return False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return True
