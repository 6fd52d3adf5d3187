"""Reading whole files by path or URL. Manifests, prompt templates and TFDS sources use it."""

from __future__ import annotations

import codecs
import json
from typing import Any

from salmonn_jax.errors import UserError, check_unicode
from salmonn_jax.paths import read_bytes


def read_file(location: str, description: str) -> bytes:
    """Returns the content of a file.

    Args:
      location: local path, or URL that `salmonn_jax.paths.read_bytes` reads.
      description: what the file is, for the error message, such as "the manifest".

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return read_bytes(location)
    except (OSError, ValueError) as error:
        raise UserError(f"{description} {location} cannot be read: {error}") from None


def read_utf8_file(location: str, description: str) -> bytes:
    """Returns the content of a text file without its byte order mark; for the arguments see `read_file`.

    Lines are decoded by the caller, so that a line that is not UTF-8 does not affect the others.

    Raises:
      UserError: the file cannot be read, or is UTF-16 or UTF-32.
    """
    data = read_file(location, description)
    # JSON escapes NUL characters, so every NUL byte comes from a wider encoding or from a binary file.
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4096]:
        raise UserError(f"{description} {location} is not UTF-8: convert it, or save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8)


def read_json(location: str, description: str) -> Any:
    """Returns the parsed content of a JSON file; for the arguments see `read_file`.

    Raises:
      UserError: the file cannot be read, is not UTF-8 or not JSON, or has strings that are not Unicode text.
    """
    data = read_utf8_file(location, description)
    try:
        parsed = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{description} {location} is not UTF-8 ({describe_wrong_byte(error)}): convert it, or save it as UTF-8"
        ) from None
    except ValueError as error:
        raise UserError(f"{description} {location} cannot be read: it is not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{description} {location} cannot be read: it is nested too deeply") from None
    if b"\\u" in data:  # an escape is the only way to a surrogate
        check_unicode(f"a string in {location}", json.dumps(parsed, ensure_ascii=False))
    return parsed


def describe_wrong_byte(error: UnicodeDecodeError) -> str:
    """Returns the byte that is not UTF-8 and its position."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
