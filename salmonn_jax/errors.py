"""The one exception that means "the input is wrong", as opposed to "the program failed"."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import pathlib
import re
import types
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the mend; entry points exit with code 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a `name` that is not among `known`, with the nearest one as the suggestion."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "it must be one of: " + ", ".join(known)
    return UserError(f"unknown {kind} {name!r}; {hint}")


def import_optional(name: str, extra: str) -> types.ModuleType:
    """Imports a package that the core does not need. Raises UserError naming the extra it comes with."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"this needs the package {name} ({error}): pip install 'salmonn-jax[{extra}]'") from None


@contextlib.contextmanager
def convert_disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Lets a disk that is full, or fails, while `path` is written be the OSError it is, whatever a library makes of it.

    tensorstore and safetensors raise errors of their own, with the number of the system's in the text.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = re.search(r"os[ _]error(?:_code)?[ ='\"]+(\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
