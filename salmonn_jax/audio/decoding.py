"""Decoding of audio files to samples at their own rate. `salmonn_jax.audio.files.load_audio` uses it.

A file is read whole or rejected: parts that are joined end to end are all read, and a file that is cut or damaged
raises AudioError. Segments are read without decoding what comes before, where the format allows it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import miniaudio
import numpy as np
import soundfile

from salmonn_jax.audio import containers
from salmonn_jax.audio.limits import MISSING_SECONDS, check_sample_rate, sample_range
from salmonn_jax.audio.pyav import decode_with_av
from salmonn_jax.errors import AudioError

# Formats without a header, which are recognised by file name only. libsndfile takes some of them for broken MP3.
_HEADERLESS = (".g722", ".gsm")

_BLOCK = 1 << 22  # samples; a header may declare any length, so memory is allocated block by block
# Lines of libsndfile's log on a header that declares more bytes than the file has.
_LOG_OF_MISSING_BYTES = re.compile(r"(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)")
_UNKNOWN_BYTES = 0x7FFFF000  # headers of streams declare this or more, because the length was not known
_FLAC_CLEAN_END = 39  # error code of libsndfile at the end of a FLAC file that has fewer frames than its header says


def decode_file(
    source: str | os.PathLike | bytes, name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """Decodes a file, returning samples [samples, channels] in the codec's own dtype and the rate in Hz.

    Args:
      source: path or contents of the file.
      name: name of the file in error messages.
      start: start of the segment to read, in seconds.
      end: end of the segment in seconds; None reads to the end.

    Raises:
      AudioError: the file is missing, empty, cut or damaged, cannot be decoded, or has an impossible sample rate.
    """
    if not isinstance(source, bytes):
        _check_path(source, name)
    elif not source:
        raise AudioError("empty", f"{name} is empty")
    if not isinstance(source, bytes) and os.fspath(source).lower().endswith(_HEADERLESS):
        return decode_with_av(source, name, start, end)
    container = _container(source)
    if container == "flac":
        return _decode_flac_file(source, name, start, end)
    parts: Sequence[str | os.PathLike | bytes] = [source]
    if container in ("ogg", "mp3"):
        split, find_damage = _SPLIT[container]
        parts = split(_read_bytes(source))
        if end is None and start == 0:
            for part in parts:
                _raise_damage(find_damage(part), name)
        parts = list(map(containers.with_mp3_length, parts)) if container == "mp3" else parts
    try:
        return _decode_parts(parts, name, start, end)
    except _UnsupportedError as error:
        if container == "mp3" or len(parts) > 1:
            raise AudioError("undecodable", f"{name} is not audio that can be decoded: {error}") from None
    except AudioError as error:
        # libsndfile fails at the end of Opus files without an end mark, whose pages are all whole. In other formats its
        # errors mean damage, which another decoder must not hide.
        if container != "ogg" or len(parts) > 1 or error.reason != "undecodable":
            raise
    return decode_with_av(source, name, start, end)


def decode_flac(data: bytes) -> tuple[np.ndarray, int] | None:
    """Decodes a 16-bit FLAC file with miniaudio.

    It takes two thirds of the time of libsndfile and releases the GIL, so threads decode in parallel.

    Returns:
      int16[samples, channels] and the rate in Hz; None for other formats and for damaged files.
    """
    # The STREAMINFO block comes first: 20 bits of sample rate, 3 bits of channels, 5 bits of bits per sample.
    if len(data) < 42 or (data[20] & 1) << 4 | data[21] >> 4 != 16 - 1:
        return None
    try:
        info = miniaudio.flac_get_info(data)
        samples = np.frombuffer(miniaudio.flac_read_s16(data).samples, np.int16).reshape(-1, info.nchannels)
    except (miniaudio.DecodeError, ZeroDivisionError):  # ZeroDivisionError: the rate is 0
        return None
    # miniaudio skips damaged frames without an error.
    return (samples, info.sample_rate) if 0 < len(samples) == info.num_frames else None


class _UnsupportedError(Exception):
    """libsndfile does not know the format of a file."""


def _check_path(source: str | os.PathLike, name: str) -> None:
    path = pathlib.Path(source)
    try:
        if not path.is_file():
            raise AudioError("missing", f"no audio file {name}")
        if path.stat().st_size == 0:
            raise AudioError("empty", f"{name} is empty")
    except OSError as error:  # a path that is too long, or a folder that may not be read
        shown = name if len(name) < 200 else f"{name[:197]}..."
        hint = "; are audio and answer swapped?" if error.errno == errno.ENAMETOOLONG else ""
        raise AudioError("missing", f"no audio file {shown}: {error.strerror}{hint}") from None


def _container(source: str | os.PathLike | bytes) -> str:
    """Returns "ogg", "mp3" or "flac" by the first bytes; "" for other formats."""
    head = _read_head(source)
    if head.startswith((b"OggS", b"fLaC")):
        return {b"OggS": "ogg", b"fLaC": "flac"}[head[:4]]
    return "mp3" if containers.is_mp3_frame(head) else ""


def _read_head(source: str | os.PathLike | bytes) -> bytes:
    """Returns the first 42 bytes after an ID3 tag; b"" if the file cannot be read: a decoder reports the error."""
    with contextlib.suppress(OSError), _open(source) as file:
        file.seek(containers.id3_size(file.read(10)))
        return file.read(42)
    return b""


def _open(source: str | os.PathLike | bytes):
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _read_bytes(source: str | os.PathLike | bytes) -> bytes:
    return source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()


def _raise_damage(damage: str | None, name: str) -> None:
    if damage is not None:
        raise AudioError("incomplete", f"{name} is cut or damaged: {damage}")


_SPLIT: dict[str, tuple[Callable[[bytes], list[bytes]], Callable[[bytes], str | None]]] = {
    "ogg": (containers.ogg_parts, containers.ogg_damage),
    "mp3": (containers.mp3_parts, containers.mp3_damage),
}


def _decode_flac_file(
    source: str | os.PathLike | bytes, name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """Decodes a FLAC file. libFLAC checks each frame and raises an error at a damaged one."""
    is_stream = containers.flac_length(_read_head(source)) == 0
    if is_stream or (start == 0 and end is None):
        with contextlib.suppress(OSError):  # libsndfile reads the file, or reports the error
            source = containers.skip_id3(_read_bytes(source))
    if isinstance(source, bytes) and is_stream:
        source = _with_measured_length(source, name)
    decoded = decode_flac(source) if isinstance(source, bytes) and start == 0 and end is None else None
    if decoded is not None:
        check_sample_rate(decoded[1], name)
        return decoded
    try:
        return _decode_parts([source], name, start, end)
    except _UnsupportedError as error:
        raise AudioError("undecodable", f"{name} is not audio that can be decoded: {error}") from None


def _with_measured_length(data: bytes, name: str) -> bytes:
    """Returns a streamed FLAC file, whose header declares no length, with its length in the header.

    libsndfile needs the length. A header that declares more tells whether the last frame is whole.
    """
    try:
        decoded = miniaudio.flac_read_s16(data)
    except (miniaudio.DecodeError, ZeroDivisionError) as error:
        raise AudioError("undecodable", f"{name} is not audio that can be decoded: {error}") from None
    length = len(decoded.samples) // decoded.nchannels
    try:
        with soundfile.SoundFile(io.BytesIO(containers.with_flac_length(data, length + 1))) as file:
            file.read(dtype="int16")
    except soundfile.LibsndfileError as error:
        if error.code != _FLAC_CLEAN_END:
            raise AudioError(
                "incomplete", f"{name} is cut or damaged after {length / decoded.sample_rate:.1f} s"
            ) from None
    return containers.with_flac_length(data, length)


def _decode_parts(
    parts: Sequence[str | os.PathLike | bytes], name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """Decodes the segment of consecutive parts with libsndfile.

    Raises:
      _UnsupportedError: libsndfile does not know the format.
      AudioError: a part is cut or damaged, or the parts have different rates or numbers of channels.
    """
    decoded, formats, position = [], set(), 0
    for part in parts:
        try:
            file = soundfile.SoundFile(io.BytesIO(part) if isinstance(part, bytes) else os.fspath(part))
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:  # it misreads some bytes as a stream
            raise _UnsupportedError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        with file:
            check_sample_rate(file.samplerate, name)
            formats.add((file.samplerate, file.channels))
            first, last = sample_range(start, end, file.samplerate)
            if start == 0 and end is None:
                _check_declared_bytes(file, name)
            decoded.append(_read_range(file, first - position, None if last is None else last - position, name))
            position += file.frames
    if len(formats) > 1:
        kinds = " and ".join(f"{rate} Hz with {channels} channel(s)" for rate, channels in sorted(formats))
        raise AudioError("undecodable", f"{name} is joined of parts with {kinds}")
    return np.concatenate(decoded) if len(decoded) > 1 else decoded[0], formats.pop()[0]


def _read_range(file: soundfile.SoundFile, first: int, last: int | None, name: str) -> np.ndarray:
    """Reads samples from `first` to before `last`, as far as they are in the file.

    Raises:
      AudioError: the file has fewer samples than its header says, or a damaged one.
    """
    first = min(max(first, 0), file.frames)
    last = file.frames if last is None else min(max(last, first), file.frames)
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    skipped = 0 if file.seekable() else first  # some formats are read from the beginning
    blocks, position = [], first - skipped
    try:
        if file.seekable() and first:
            file.seek(first)
        while position < last or not blocks:
            block = file.read(min(_BLOCK, last - position), dtype=dtype, always_2d=True)
            blocks.append(block)
            position += len(block)
            if not len(block):
                break
    except soundfile.LibsndfileError as error:
        raise AudioError("undecodable", f"{name} is cut or damaged (libsndfile error {error.code})") from None
    if (last - position) / file.samplerate > MISSING_SECONDS:
        seconds = [f"{samples / file.samplerate:.1f} s" for samples in (position - first, last - first)]
        raise AudioError("incomplete", f"{name} is cut or damaged: {' of '.join(seconds)} can be decoded")
    return (np.concatenate(blocks) if len(blocks) > 1 else blocks[0])[skipped:]


def _check_declared_bytes(file: soundfile.SoundFile, name: str) -> None:
    """Raises AudioError if a header declares more bytes of samples than the file has. Headers of streams may do so."""
    for declared, found in _LOG_OF_MISSING_BYTES.findall(file.extra_info):
        missing = int(declared) - int(found)
        if int(declared) < _UNKNOWN_BYTES and missing * file.frames > MISSING_SECONDS * file.samplerate * int(found):
            raise AudioError("incomplete", f"{name} is cut: {missing} of {declared} bytes are missing")
