"""How the processes of an evaluation stop early together, although each decodes on its own."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

from salmonn_jax.paths import Path
from salmonn_jax.preemption import SigtermListener

SIGTERM_REASON = "SIGTERM"


class StopSignal:
    """Context manager in which SIGTERM, or the request of another process, stops the predictions of this process.

    A process that stops writes a small file to the output directory, and the others look for it before every batch. So
    all stop after the batch they are at.

    Args:
      directory: output directory of the evaluation, which all processes share.
      shard: (process index, number of processes).
    """

    def __init__(self, directory: Path, shard: tuple[int, int]):
        self._directory, (self._index, self._count) = directory, shard
        self._sigterm = SigtermListener()

    def __enter__(self) -> Self:
        self._sigterm.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._sigterm.__exit__(kind, error, traceback)

    def clear(self) -> None:
        """Deletes the requests of an earlier start. One process calls it before the others begin."""
        for path in self._directory.glob("stop-*"):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def request(self, reason: str) -> None:
        """Asks the other processes to stop."""
        if self._count > 1:
            (self._directory / f"stop-{self._index}").write_text(reason)

    def reason(self) -> str:
        """Returns why this process is to stop; "" if it is not."""
        return SIGTERM_REASON if self._sigterm.received else self.requested()

    def requested(self) -> str:
        """Returns why a process asked the others to stop; "" if none did."""
        if self._count > 1:
            for path in self._directory.glob("stop-*"):
                return path.read_text()
        return ""
