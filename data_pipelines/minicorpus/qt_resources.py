"""Reader of Qt's binary resource files (`.rcc`), in which GCompris stores its sounds.

A resource file contains a tree of named files, which may be compressed with zlib. All numbers are big-endian. The
header is "qres", the version, and the offsets of the tree, of the contents and of the names. A name is its length in
UTF-16 units, a hash, and the units. A node of the tree is (name, flags, ...). For a directory, (count, first child)
follow; for a file, (country, language, offset of the content). From version 2 on, a node ends with 8 bytes of
modification time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_ZLIB, _DIRECTORY, _ZSTD = 1, 2, 4


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of each file in an rcc file, in the order of its tree.

    Raises:
      ValueError: the data is not an rcc file, or it uses zstd compression.
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
            raise ValueError("zstd compression of a Qt resource file is not supported")
        return zlib.decompress(content[4:]) if flags & _ZLIB else content  # the first 4 bytes are the uncompressed size

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        position = tree + node * node_size
        name, flags = struct.unpack_from(">IH", data, position)
        path = f"{folder}/{name_at(name)}".lstrip("/") if node else ""  # the root has no name
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", data, position + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", data, position + 10)
            yield path, content_at(offset, flags)

    yield from walk(0, "")
