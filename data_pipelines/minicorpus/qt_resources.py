"""Qt's binary resource files (`.rcc`), in which GCompris keeps its sounds: a tree of named, maybe zipped files.

Layout, big-endian: "qres", version, then the offsets of the tree, of the data and of the names. A name is its length in
UTF-16 units, a hash, and the units. A node is (name, flags, ...): a directory goes on with (count, first child), a file
with (country, language, offset in the data); from version 2 on, 8 bytes of modification time follow either.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_ZLIB, _DIRECTORY, _ZSTD = 1, 2, 4


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of every file in an rcc file, in the order of its tree.

    Raises:
      ValueError: this is not an rcc file, or one with a compression that is not known here.
    """
    if data[:4] != b"qres":
        raise ValueError("not a Qt resource file")
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    node_size = 14 if version == 1 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6
        return data[start : start + 2 * length].decode("utf-16-be")

    def content_at(offset: int, flags: int) -> bytes:
        (length,) = struct.unpack_from(">I", data, contents + offset)
        start = contents + offset + 4
        content = data[start : start + length]
        if flags & _ZSTD:
            raise ValueError("a Qt resource file with zstd compression")
        return zlib.decompress(content[4:]) if flags & _ZLIB else content  # 4 bytes of unzipped size come first

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + node * node_size
        name, flags = struct.unpack_from(">IH", data, at)
        path = f"{folder}/{name_at(name)}".lstrip("/") if node else ""  # the root has no name
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", data, at + 10)
            yield path, content_at(offset, flags)

    yield from walk(0, "")
