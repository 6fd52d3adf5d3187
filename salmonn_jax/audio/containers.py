"""Structure of Ogg, MP3 and FLAC files: their parts, and whether they are whole. `salmonn_jax.audio.decoding` uses it.

may be joined end to end, and decoders stop at the end of the first part. Both may also be cut or damaged, and decoders
skip what they cannot read. Sources: RFC 3533 (Ogg), RFC 9639 (FLAC), ISO 11172-3 (MPEG audio), and the Xing and LAME
headers of MP3 files.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple


class OggPage(NamedTuple):
    """Header of an Ogg page; `end` is the end of the page in the file, which may be behind the end of a cut file."""

    start: int
    end: int
    is_first: bool  # first page of a logical stream
    serial: int
    number: int


_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# First frame of an MP3 file that holds its length: 4 bytes of header, side information of zeros, and a name.
_XING = re.compile(rb"\xff[\xe2-\xff][^\xff][^\xff](?:\0\0)?(?:\0{9}|\0{17}|\0{32})(?:Xing|Info)")
_SAME_FRAME = 64  # bytes; less than an MP3 frame
# Kilobits per second of layer III by index, for MPEG 1 and for MPEG 2 and 2.5.
_BITRATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)


def ogg_pages(data: bytes) -> Iterator[OggPage]:
    """Yields the pages of an Ogg file up to the first byte that is not a page."""
    position = 0
    while data.startswith(b"OggS", position) and position + 27 <= len(data):
        serial, number = struct.unpack_from("<II", data, position + 14)
        segments_end = position + 27 + data[position + 26]
        end = segments_end + sum(data[position + 27 : segments_end])
        yield OggPage(position, end, bool(data[position + 5] & 2), serial, number)
        position = end


def ogg_parts(data: bytes) -> list[bytes]:
    """Splits an Ogg file into its chained parts. A part begins with the first pages of its logical streams."""
    starts, in_first_pages = [], False
    for page in ogg_pages(data):
        if page.is_first and not in_first_pages:
            starts.append(page.start)
        in_first_pages = page.is_first
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def ogg_damage(data: bytes) -> str | None:
    """Returns what is wrong with an Ogg file: cut, missing or damaged pages; None if it is whole.

    A file that is cut between two pages cannot be told from a whole file.
    """
    numbers: dict[int, int] = {}
    end = 0
    for page in ogg_pages(data):
        if page.end > len(data):
            return "the file ends in the middle of a page"
        if not page.is_first and page.number != (numbers.get(page.serial, -1) + 1) % 2**32:
            return f"pages are missing before byte {page.start}"
        if _ogg_checksum(data[page.start : page.end]) != data[page.start + 22 : page.start + 26]:
            return f"the page at byte {page.start} is damaged"
        numbers[page.serial], end = page.number, page.end
    rest = data[end:].strip(b"\0")
    return None if not rest or rest.startswith(b"TAG") else f"there is no page at byte {end}"


def _ogg_checksum(page: bytes) -> bytes:
    """Returns the checksum of a page: CRC-32 with the highest bit first, which is zlib's of the reversed bits."""
    zeroed = page[:22] + bytes(4) + page[26:]
    reversed_crc = zlib.crc32(zeroed.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reversed_crc.to_bytes(4, "big").translate(_REVERSED_BITS)


def mp3_parts(data: bytes) -> list[bytes]:
    """Splits an MP3 file at the headers that hold the length of a part. A file without any is one part.

    Decoders stop at the length in the first header, so the parts of a joined file are decoded one by one. Bytes behind
    the length of the last header are a part of their own if they begin with a frame or with an ID3 tag.
    """
    starts = [match.start() for match in _XING.finditer(data)]
    if not starts:
        return [data]
    first = starts[0] if not _frame_length(data, _skip_id3(data, 0)) else _skip_id3(data, 0)
    ends = [*starts[1:], len(data)]
    parts = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    if first < starts[0]:  # the first part has no header
        parts.insert(0, data[: starts[0]])
    _, num_bytes = _xing_length(parts[-1])
    rest = parts[-1][num_bytes:] if num_bytes else b""
    if _frame_length(rest, _skip_id3(rest, 0)):
        parts[-1:] = [parts[-1][:num_bytes], rest]
    return parts


def with_mp3_length(part: bytes) -> bytes:
    """Returns a part of an MP3 file with a header that holds its number of frames.

    Without one, decoders estimate the length from the first frame and stop there.
    """
    if _XING.match(part):
        return part
    start = _skip_id3(part, 0)
    frames = sum(1 for _ in _frame_ends(part, start))
    header = bytes((part[start], part[start + 1] | 1, part[start + 2] & 0x0C | 0x90, part[start + 3]))
    is_mpeg1, is_mono = header[1] & 8, header[3] >> 6 == 3
    side_information = bytes((17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17))
    frame = header + side_information + b"Xing" + struct.pack(">II", 1, frames)
    return frame.ljust(_frame_length(header, 0), b"\0") + part[start:]


def mp3_damage(part: bytes) -> str | None:
    """Returns what is wrong with a part of an MP3 file: cut or damaged frames; None if it is whole.

    A part without a header that is cut between two frames cannot be told from a whole one.
    """
    _, num_bytes = _xing_length(part)
    if num_bytes:
        missing = num_bytes - len(part)
        return f"{missing} of {num_bytes} bytes are missing" if missing > _SAME_FRAME else None
    start = _skip_id3(part, 0)
    position = max(_frame_ends(part, start), default=start)
    if position > len(part) + _SAME_FRAME:
        return "the file ends in the middle of a frame"
    rest = part[position : position + 8]
    is_tag = rest.startswith((b"TAG", b"APETAGEX", b"ID3", b"LYRICS")) or not part[position:].strip(b"\0")
    return None if is_tag else f"there is no MP3 frame at byte {position}"


def _xing_length(part: bytes) -> tuple[int, int]:
    """Returns the numbers of frames and of bytes in the header of a part; 0 for those that it does not have."""
    match = _XING.match(part)
    if match is None or len(part) < match.end() + 12:
        return 0, 0
    flags, *values = struct.unpack_from(">III", part, match.end())
    frames = values.pop(0) if flags & 1 else 0
    return frames, values.pop(0) if flags & 2 else 0


def flac_length(data: bytes) -> int:
    """Returns the number of samples per channel that a FLAC file declares; 0 if it was written as a stream."""
    return int.from_bytes(data[21:26], "big") & (1 << 36) - 1


def with_flac_length(data: bytes, length: int) -> bytes:
    """Returns a FLAC file with another declared number of samples per channel."""
    return data[:21] + (int.from_bytes(data[21:26], "big") >> 36 << 36 | length).to_bytes(5, "big") + data[26:]


def id3_size(data: bytes) -> int:
    """Returns the size in bytes of the ID3v2 tag at the beginning; 0 if there is none."""
    if not data.startswith(b"ID3") or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 127
    return 10 + size


def skip_id3(data: bytes) -> bytes:
    """Returns the data without the ID3v2 tag at the beginning."""
    size = id3_size(data)
    return data[size:] if size else data


def is_mp3_frame(data: bytes) -> bool:
    """Returns whether the data begins with a frame of MP3."""
    return _frame_length(data, 0) > 0


def _skip_id3(data: bytes, position: int) -> int:
    """Returns the end of the ID3v2 tag at a position, or the position if there is none."""
    return position + id3_size(data[position : position + 10])


def _frame_ends(data: bytes, position: int) -> Iterator[int]:
    """Yields the ends of the consecutive frames from a position on. The last may be behind the end of a cut file."""
    while length := _frame_length(data, position):
        position += length
        yield position


def _frame_length(data: bytes, position: int) -> int:
    """Returns the length in bytes of the frame of layer III at a position; 0 if there is none."""
    header = data[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    is_mpeg1 = version == 3
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if is_mpeg1 else 72) * 1000 * _BITRATES[not is_mpeg1][bitrate] // hertz + (header[2] >> 1 & 1)
