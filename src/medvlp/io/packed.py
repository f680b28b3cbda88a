"""Compressed files, read as a stream that a decompression bomb cannot fill the memory with."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from medvlp.errors import DataError

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What reading a damaged, encrypted or unknown archive raises."""

_RATIO = 100  # tables and reports shrink to a third up to a thirtieth
_ALWAYS = 64 << 20  # bytes that any file may unpack to
_NEVER = 4 << 30


def size_limit(path: Path) -> int:
    """Return the most bytes that a compressed file may unpack to: 100 times its size, from 64 MiB to 4 GiB."""
    return min(max(_ALWAYS, _RATIO * path.stat().st_size), _NEVER)


def too_large(path: Path, limit: int) -> DataError:
    """Return the error for a file that unpacks to more."""
    return DataError(f"{path} unpacks to more than {limit >> 20} MiB; if the content is sound, unpack it yourself")


class _Bounded(io.RawIOBase):
    """Stream that raises if it is longer than ``limit`` bytes."""

    def __init__(self, stream: IO[bytes], limit: int, path: Path) -> None:
        self._stream, self._limit, self._left, self._path = stream, limit, limit, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise too_large(self._path, self._limit)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_unpacked(path: str | Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, unpacked if it is compressed with gzip, bzip2, xz or zip (of one file).

    The first bytes decide, not the name: browsers unpack downloads without renaming them.

    Raises:
        DataError: the content exceeds :func:`size_limit` (while it is read), or the zip file does not hold one file.
        Exception: one of :data:`READ_ERRORS`, if the file is damaged.
    """
    path = Path(path)
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        head = file.read(6)
        file.seek(0)
        if head.startswith(b"\x1f\x8b"):
            packed: Any = stack.enter_context(gzip.open(file))
        elif head.startswith(b"BZh"):
            packed = stack.enter_context(bz2.open(file))
        elif head == b"\xfd7zXZ\x00":
            packed = stack.enter_context(lzma.open(file))
        elif head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            archive = stack.enter_context(zipfile.ZipFile(file))
            members = [i for i in archive.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")]
            if len(members) != 1:
                raise DataError(f"{path} holds {len(members)} files; a zip file is read if it holds one, so unpack it")
            packed = stack.enter_context(archive.open(members[0]))
        else:
            yield file
            return
        yield io.BufferedReader(_Bounded(packed, size_limit(path), path), 1 << 20)
