"""Exceptions for bad input and failed runs, and helpers that raise them or turn library errors into plain ones."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import pathlib
import re
import types
from collections.abc import Iterable, Iterator
from typing import get_args


class UserError(Exception):
    """Bad input. The message is one line that names the problem and its fix. Entry points exit with code 2."""


class AudioError(UserError):
    """Audio that cannot be used.

    Attributes:
      reason: one of "missing", "undecodable", "incomplete", "empty", "not finite", "out of range"
        and "too long".
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class RunError(Exception):
    """Failure of a run whose input was valid. The message is one line. Entry points exit with code 1."""


class AudioWarning(UserWarning):
    """Audio that the model gets only in part. The message is one line; entry points print it on stderr."""


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an exception says that JAX could not allocate memory on a device."""
    return type(error).__name__ == "JaxRuntimeError" and any(
        words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")
    )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a name that is not among the known ones.

    Args:
      kind: what the name stands for, such as "configuration".
      name: the unknown name.
      known: valid names. The message suggests the nearest one, or lists all if none is near.
    """
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    some = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    hint = f"did you mean {matches[0]!r}?" if matches else f"it must be one of: {some}"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def check_choice(name: str, value: object, choices: object) -> None:
    """Raises UserError if `value` of the argument `name` is not among the choices of a `Literal` type."""
    if value not in get_args(choices):
        raise UserError(f"{name}={value!r}: must be one of {', '.join(get_args(choices))}")


def check_unicode(name: str, text: str) -> None:
    """Raises UserError if a text has unpaired surrogates, which JSON can express but no tokenizer or file can.

    Args:
      name: what the text is, for the error message.
      text: text to check.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is not Unicode text: character {error.start} is the unpaired surrogate {text[error.start]!a}; "
            "remove it"
        ) from None


def import_optional(name: str, extra: str) -> types.ModuleType:
    """Imports and returns an optional package. Raises UserError naming the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"this needs the package {name} ({error}): pip install 'salmonn-jax[{extra}]'") from None


@contextlib.contextmanager
def convert_disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Converts library errors about a full or failing disk to OSError while `path` is written.

    tensorstore and safetensors raise exceptions of their own types, whose text contains the system's error number.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        errno_match = re.search(r"os[ _]error(?:_code)?[ ='\"]+(\d+)", str(error))
        if errno_match is None:
            raise
        raise OSError(int(errno_match[1]), os.strerror(int(errno_match[1])), str(path)) from error
