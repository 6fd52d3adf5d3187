"""Reading whole files by path or URL. Manifests, prompt templates and TFDS sources use it."""

from __future__ import annotations

import json
from typing import Any

import fsspec

from salmonn_jax.errors import UserError


def read_file(location: str, description: str) -> bytes:
    """Returns the content of a file.

    Args:
      location: local path, or URL that fsspec opens.
      description: what the file is, for the error message, such as "the manifest".

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with fsspec.open(location, "rb") as file:
            return file.read()
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{description} {location} cannot be read: {error}") from None


def read_json(location: str, description: str) -> Any:
    """Returns the parsed content of a JSON file; for the arguments see `read_file`.

    Raises:
      UserError: the file cannot be read or is not JSON.
    """
    data = read_file(location, description)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{description} {location} cannot be read: it is not JSON: {error}") from None
