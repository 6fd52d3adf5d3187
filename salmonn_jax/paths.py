"""Paths of files and directories on a local disk or in a bucket. Every command and every reader and writer uses them.

`as_path` is the one place where a path of the user is parsed. A local path is a `pathlib.Path`; a `gs://` or `s3://`
URL is an `epath.Path`, which has the same methods and opens buckets through fsspec. A bucket can neither rename
directories nor append to files; `salmonn_jax.files` has writers that do not need this.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import urllib.parse
import uuid
from collections.abc import Iterator

import fsspec
from etils import epath

from salmonn_jax.errors import UserError, unknown_name

Path = pathlib.Path | epath.Path
PathLike = epath.PathLike

PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # package that opens a scheme, and the extra that installs it
_WEB = ("http", "https")  # single files can be read from them
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)(.*)", re.DOTALL)
# Modules of the exceptions that the clients of buckets raise, besides OSError.
_CLIENT_MODULES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs"}

# A listing that is kept in memory would hide the files that other processes write.
for _protocol in ("gs", "gcs", "s3"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)


def as_path(location: PathLike) -> Path:
    """Parses a local path or a URL of a bucket. `file:///x` is the local path `/x`.

    Raises:
      UserError: it is empty, or the URL has an unknown scheme or no bucket, or the package for its scheme is not
        installed.
    """
    text = os.fspath(location)
    if not text:  # such as a shell variable that is not set; pathlib would take it for the current directory
        raise UserError("a path is empty; write . for the current directory")
    match = _URL.fullmatch(text)
    if match is None:
        return pathlib.Path(text)
    scheme, slashes, rest = match[1].lower(), len(match[2]), match[3]
    if scheme == "file" and slashes != 2:
        return pathlib.Path("/" + urllib.parse.unquote(rest))
    if scheme == "file":
        raise UserError(f"{text}: names a host; a local file is file:///{rest}, with three slashes")
    if slashes != 2:
        raise UserError(f"{text}: a URL has two slashes; write {scheme}://{rest}")
    if scheme in _WEB:
        raise UserError(f"{text}: directories and outputs cannot be on the web; use a local path, gs:// or s3://")
    if scheme not in PACKAGES:
        raise UserError(f"{text}: {unknown_name('scheme', scheme, (*PACKAGES, 'file'))}")
    if not rest:
        raise UserError(f"{text}: names no bucket; write {scheme}://BUCKET/DIRECTORY")
    _require_package(scheme, text)
    return epath.Path(f"{scheme}://{rest}")


def is_url(path: PathLike) -> bool:
    """Returns whether a path is a URL, not a local path."""
    return not isinstance(path, pathlib.Path) and "://" in os.fspath(path)


def absolute(path: Path) -> Path:
    """Returns a local path as an absolute one, and a URL unchanged. (`resolve` of epath makes a URL a local path.)"""
    return path if is_url(path) else path.resolve()


def join(directory: Path, location: str) -> Path:
    """Returns the path that `location` is relative to `directory`; an absolute path or a URL is returned as it is."""
    return as_path(location) if "://" in location or location.startswith("/") else directory / location


def filesystem(path: Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a path, and the path in it."""
    return fsspec.url_to_fs(os.fspath(path))


def size(path: Path) -> int:
    """Returns the size of a file in bytes."""
    fs, name = filesystem(path)
    return fs.size(name)


def read_bytes(location: PathLike) -> bytes:
    """Returns the content of a file, which may also be at any other URL that fsspec opens, such as https://.

    Raises:
      UserError: the scheme is unknown, or the package for it is not installed.
      OSError: the file cannot be read.
    """
    text = check_file_location(location)
    try:
        if _is_other_url(text):
            with fsspec.open(text, "rb") as file:
                return file.read()
        return as_path(text).read_bytes()
    except Exception as error:
        if not is_client_error(error) or isinstance(error, OSError):
            raise
        raise OSError(_first_words(error)) from None


def check_file_location(location: PathLike) -> str:
    """Returns a path or URL that `read_bytes` can read, as text.

    Raises:
      UserError: the scheme is unknown, or the package for it is not installed.
    """
    text = os.fspath(location)
    if not _is_other_url(text):
        return str(as_path(text))
    _require_package(text.partition(":")[0].lower(), text)
    return text


def check_readable(path: Path) -> None:
    """Raises UserError if a URL cannot be reached. A file or directory that does not exist is no error."""
    if is_url(path):
        with convert_client_errors(path):
            path.exists()


def check_writable(path: Path) -> None:
    """Raises UserError if nothing can be written at a URL. Writes and deletes a small object there."""
    if is_url(path):
        probe = path / f".write-check-{uuid.uuid4().hex}"
        with convert_client_errors(path):
            probe.write_bytes(b"")
            probe.unlink()


@contextlib.contextmanager
def convert_client_errors(path: Path) -> Iterator[None]:
    """Converts errors of the client of a bucket, such as missing credentials, to UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each client raises exceptions of its own
        raise UserError(
            f"{path} cannot be reached ({_first_words(error)}); check the name of the bucket and your credentials"
        ) from None


def is_client_error(error: Exception) -> bool:
    """Returns whether an exception comes from the client of a bucket."""
    return any(base.__module__.partition(".")[0] in _CLIENT_MODULES for base in type(error).__mro__)


def _first_words(error: Exception) -> str:
    """Returns the message of an error as one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _is_other_url(text: str) -> bool:
    """Returns whether a text is a URL that `as_path` does not take and from which single files can be read."""
    match = _URL.fullmatch(text)
    return match is not None and len(match[2]) == 2 and match[1].lower() not in (*PACKAGES, "file")


def _require_package(scheme: str, location: str) -> None:
    """Raises UserError if the package that opens URLs of this scheme is missing, or no package does."""
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise UserError(f"{location}: {unknown_name('scheme', scheme, (*PACKAGES, *_WEB, 'file'))}") from None
    except ImportError as error:
        if scheme in PACKAGES:
            package, extra = PACKAGES[scheme]
            hint = f"{scheme}:// needs the package {package}: pip install 'salmonn-jax[{extra}]'"
        else:
            extra = "http" if scheme in _WEB else scheme
            hint = f"{scheme}:// needs another package ({error}): pip install 'fsspec[{extra}]'"
        raise UserError(f"{location}: {hint}") from None
