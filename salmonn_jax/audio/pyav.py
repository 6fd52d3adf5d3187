"""Decoding with PyAV of what libsndfile cannot read, such as AAC, WebM, G.722 or the sound track of a video.

Only the wanted segment is decoded and kept. `salmonn_jax.audio.decoding` uses it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from salmonn_jax.audio.limits import MISSING_SECONDS, check_sample_rate, sample_range
from salmonn_jax.errors import AudioError

# Containers whose time stamps tell the position after a seek. In others it is estimated from the bit rate.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Containers whose header declares the duration. In others it is estimated.
_WITH_DURATION = (*_SEEKABLE, "caf", "wav", "w64", "aiff", "ogg", "flac")
_SEEK_MARGIN = 1.0  # seconds decoded before a segment, so that the state of the decoder has converged
_ENCODER_DELAY = 0.1  # seconds; declared durations of AAC and Opus may include the delay and padding of the encoder


class _Frame(NamedTuple):
    samples: np.ndarray  # [samples, channels]
    rate: int
    seconds: float | None  # time stamp


def decode_with_av(
    source: str | os.PathLike | bytes, name: str, start: float, end: float | None
) -> tuple[np.ndarray, int]:
    """Decodes an audio file or the sound track of a video; for arguments and results see `decoding.decode_file`."""
    try:
        import av
    except ImportError:
        raise AudioError(
            "undecodable",
            f"{name} cannot be decoded; for more audio formats: pip install 'salmonn-jax[minicorpus]'",
        ) from None

    def open_container():
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source))

    try:
        with open_container() as container:
            if not container.streams.audio:
                raise AudioError("undecodable", f"{name} has no sound track")
            if start > 2 * _SEEK_MARGIN and container.format.name in _SEEKABLE:
                segment = _read_after_seek(container, name, start, end)
                if segment is not None:
                    return segment
        with open_container() as container:
            return _read_from_start(container, name, start, end)
    except (av.FFmpegError, ValueError) as error:
        raise AudioError("undecodable", f"{name} is not audio that can be decoded: {_first_line(error)}") from None


def _read_from_start(container, name: str, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """Decodes from the beginning, keeps the segment, and stops at its end."""
    frames = _frames(container, name)
    first_frame = next(frames, None)
    if first_frame is None:
        return np.zeros((0, 1), np.int16), container.streams.audio[0].rate
    rate = first_frame.rate
    first, last = sample_range(start, end, rate)
    kept, position, frame = [], 0, first_frame
    while frame is not None and (last is None or position < last):
        _keep(kept, frame.samples, first - position, None if last is None else last - position)
        position += len(frame.samples)
        last_frame, frame = frame, next(frames, None)
    if last is None:
        _check_whole(container, name, position / rate, first_frame, last_frame)
    return (_join(kept) if kept else first_frame.samples[:0]), rate


def _read_after_seek(container, name: str, start: float, end: float | None) -> tuple[np.ndarray, int] | None:
    """Decodes from shortly before the segment. Returns None if the position after the seek is not known."""
    stream = container.streams.audio[0]
    frames = _frames(container, name)
    opening = [frame for frame in (next(frames, None), next(frames, None)) if frame is not None]
    if len(opening) < 2 or any(frame.seconds is None for frame in opening):
        return None
    rate, origin = opening[0].rate, opening[0].seconds
    first, last = sample_range(start, end, rate)
    container.seek(int((origin + start - _SEEK_MARGIN) / stream.time_base), stream=stream, backward=True)
    kept, position = [], None
    for frame in _frames(container, name):
        if position is None:
            if frame.seconds is None:
                return None
            position = _snap(round((frame.seconds - origin) * rate), [len(frame.samples) for frame in opening], rate)
            if position > first:
                return None
        if last is not None and position >= last:
            break
        _keep(kept, frame.samples, first - position, None if last is None else last - position)
        position += len(frame.samples)
    return (_join(kept), rate) if kept else (opening[0].samples[:0], rate)


def _snap(position: int, opening_lengths: list[int], rate: int) -> int:
    """Rounds a position to the nearest beginning of a frame, since time stamps of WebM are in whole milliseconds.

    Args:
      position: position in samples.
      opening_lengths: lengths of the first two frames. The first may be shorter, all others have the second's length.
      rate: sample rate in Hz.
    """
    first, length = opening_lengths
    snapped = first + round((position - first) / length) * length
    return snapped if abs(snapped - position) <= rate / 1000 else position


def _frames(container, name: str) -> Iterator[_Frame]:
    """Yields the decoded frames. Raises AudioError for damaged frames and for a rate that changes or is impossible."""
    rate = None
    for frame in container.decode(audio=0):
        if frame.is_corrupt:
            raise AudioError("incomplete", f"{name} is damaged at {frame.time or 0:.1f} s")
        if frame.sample_rate != rate:
            check_sample_rate(frame.sample_rate, name)
            if rate is not None:
                raise AudioError("undecodable", f"{name} has parts with {rate} Hz and with {frame.sample_rate} Hz")
            rate = frame.sample_rate
        samples = frame.to_ndarray()  # a packed frame interleaves its channels
        samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
        yield _Frame(samples, rate, None if frame.pts is None else float(frame.pts * frame.time_base))


def _keep(kept: list[np.ndarray], samples: np.ndarray, first: int, last: int | None) -> None:
    """Appends the samples from `first` to before `last`. An empty slice would keep its frame in memory."""
    part = samples[max(first, 0) : None if last is None else max(last, 0)]
    if len(part):
        kept.append(part)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Joins samples [samples, channels]. The number of channels may change within a file: the smallest is kept."""
    num_channels = min(part.shape[1] for part in parts)
    return np.concatenate([part[:, :num_channels] for part in parts])


def _check_whole(container, name: str, seconds: float, first_frame: _Frame, last_frame: _Frame) -> None:
    """Raises AudioError if fewer seconds were decoded than the header or the time stamps say."""
    expected = _declared_seconds(container) - _ENCODER_DELAY
    if container.format.name in _SEEKABLE and None not in (first_frame.seconds, last_frame.seconds):
        duration = last_frame.seconds + len(last_frame.samples) / last_frame.rate - first_frame.seconds
        expected = max(expected, duration)
    if expected - seconds > MISSING_SECONDS:
        raise AudioError("incomplete", f"{name} is cut or damaged: {seconds:.1f} s of {expected:.1f} s can be decoded")


def _declared_seconds(container) -> float:
    """Returns the duration that the header declares for the sound track; 0.0 if it declares none."""
    stream = container.streams.audio[0]
    if container.format.name not in _WITH_DURATION:
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:  # of Matroska: hours:minutes:seconds
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    # The duration of a file is that of its longest stream.
    return container.duration / 1e6 if container.duration is not None and len(container.streams) == 1 else 0.0


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
