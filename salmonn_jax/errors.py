"""The one exception that means "the input is wrong", as opposed to "the program failed"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the thing and the mend; entry points exit with code 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a `name` that is not among `known`, with the nearest one as the suggestion."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "it must be one of: " + ", ".join(known)
    return UserError(f"unknown {kind} {name!r}; {hint}")
