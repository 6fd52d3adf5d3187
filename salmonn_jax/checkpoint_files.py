"""Selection of the checkpoint of a run: the newest that is whole. Training, inference and conversion use it.

A checkpoint may lack files or have cut files if a disk was full, a copy was interrupted, or a bucket does not rename
directories at once. Such a checkpoint is reported and the one before it is used.
"""

from __future__ import annotations

import errno
import json
import sys

from salmonn_jax import distributed, weights
from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path

CHECKPOINTS_DIR = "checkpoints"
DELTA, OPTIMIZER, DATA = "delta", "optimizer", "data"  # directories of a checkpoint
# Orbax writes these after all other files of a checkpoint.
_COMMIT_FILES = ("commit_success.txt", "_CHECKPOINT_METADATA")
# Metadata without which Orbax fails, beside the arrays and their own metadata.
_JSON_FILES = ("_CHECKPOINT_METADATA", "*/_METADATA", "*/_sharding", "*/array_metadatas/*", "metrics/metrics")
_NO_CHECKPOINT, _NONE_WHOLE = -1, -2
# Failures of the network, of permissions or for want of memory or open files, which are no damage: error numbers, and
# status codes in tensorstore's messages.
_ACCESS_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ACCESS_FAILURES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")


def checkpoint_paths(run_dir: Path) -> list[Path]:
    """Returns the checkpoints of a run, whole or not, from the newest to the oldest."""
    paths = (path for path in (run_dir / CHECKPOINTS_DIR).glob("*") if path.name.isdecimal())
    return sorted(paths, key=lambda path: int(path.name), reverse=True)


def newest_whole_checkpoint(run_dir: Path) -> Path | None:
    """Returns the newest whole checkpoint of a run; None if the run has no checkpoint at all.

    Checkpoints that are not whole are reported on stderr. Every process calls it. Process 0 reads the checkpoints, and
    all processes get the same one.

    Raises:
      UserError: the run has checkpoints, but none is whole.
    """
    step = distributed.broadcast_from_main(_find_newest_whole(run_dir) if distributed.is_main_process() else 0)
    if step == _NONE_WHOLE:
        raise UserError(
            f"no checkpoint in {run_dir / CHECKPOINTS_DIR} is whole; copy one there, or delete that directory to start "
            "from the initial weights again"
        )
    return None if step == _NO_CHECKPOINT else run_dir / CHECKPOINTS_DIR / str(step)


def check_checkpoint(checkpoint: Path) -> None:
    """Raises UserError if a checkpoint does not exist or is not whole. Every process calls it; process 0 reads it."""
    damage = None
    if distributed.is_main_process():
        damage = find_damage(checkpoint) if checkpoint.is_dir() else "it does not exist"
    if distributed.broadcast_from_main(damage is not None):
        known = ", ".join(path.name for path in checkpoint_paths(checkpoint.parent.parent)) or "none"
        raise UserError(
            f"checkpoint {checkpoint} is not whole ({damage or 'see process 0'}); choose another one of: {known}"
        )


def _find_newest_whole(run_dir: Path) -> int:
    """Returns the step of the newest whole checkpoint, `_NO_CHECKPOINT` or `_NONE_WHOLE`, and reports the others."""
    paths = checkpoint_paths(run_dir)
    for path in paths:
        damage = find_damage(path)
        if damage is None:
            return int(path.name)
        print(f"warning: checkpoint {path} is not whole ({damage}); passing it over", file=sys.stderr)
    return _NONE_WHOLE if paths else _NO_CHECKPOINT


def find_damage(checkpoint: Path) -> str | None:
    """Reads a checkpoint in full and returns what is missing or unreadable in one line; None if it is whole.

    Raises:
      OSError: the checkpoint cannot be read at the moment, because of the network, of permissions, or for want of
        memory or open files.
    """
    for name in _COMMIT_FILES:
        if not (checkpoint / name).is_file():
            return f"it has no {name}"
    for name in (DELTA, OPTIMIZER, DATA):
        if not (checkpoint / name).is_dir():
            return f"it has no {name}"
    for path in sorted(p for pattern in _JSON_FILES for p in checkpoint.glob(pattern)):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return f"{path.relative_to(checkpoint)} is cut or overwritten"
    for name, read in ((DATA, read_stream_states), (DELTA, weights.read_all), (OPTIMIZER, weights.read_all)):
        try:
            read(checkpoint / name)
        except Exception as error:  # tensorstore and Orbax raise many types
            if _is_access_failure(error):
                raise OSError(f"{checkpoint} cannot be read: {_first_line(error)}") from None
            return f"{name} cannot be read: {_first_line(error)}"
    return None


def _is_access_failure(error: Exception) -> bool:
    """Returns whether an error says nothing about the files: the network, permissions, memory or open files."""
    return (
        isinstance(error, ConnectionError | PermissionError | TimeoutError | MemoryError)
        or getattr(error, "errno", None) in _ACCESS_ERRNOS
        or any(status in str(error) for status in _ACCESS_FAILURES)
    )


def stream_states_file(process_index: int, process_count: int) -> str:
    """Returns the name of the file with the states of the data streams of one process."""
    return f"{process_index}-of-{process_count}.json"


def read_stream_states(directory: Path) -> dict[str, object]:
    """Returns the states of all data streams of a checkpoint by stream index.

    Raises:
      OSError: the file of a process is missing.
      ValueError, TypeError: a file has no states.
    """
    counts = {path.stem.rpartition("-of-")[2] for path in directory.glob("*-of-*.json")}
    if len(counts) != 1:
        raise ValueError("it has no states of the data streams")
    states: dict[str, object] = {}
    count = int(counts.pop())
    for index in range(count):
        states |= dict(json.loads((directory / stream_states_file(index, count)).read_text()))
    return states


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
