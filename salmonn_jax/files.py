"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from salmonn_jax.errors import UserError, convert_disk_errors


@contextlib.contextmanager
def atomic_output(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place to write a file or directory to, which becomes `output` when all went well and is removed when not.

    What a kill leaves is `OUTPUT.unfinished`; the next attempt removes it.

    Raises:
      UserError: `output` is there already (an empty directory may be).
      OSError: the disk is full, or fails.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already; name a new one with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    _remove(unfinished)
    try:
        with convert_disk_errors(output):
            yield unfinished
        os.replace(unfinished, output)
    except BaseException:
        _remove(unfinished)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
