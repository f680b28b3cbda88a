"""Compressed files, read so that a decompression bomb cannot fill the memory."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
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


def _only_member(file: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    members = [i for i in archive.infolist() if not i.is_dir() and not i.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise DataError(f"{file.name} holds {len(members)} files; a zip file is read if it holds one, so unpack it")
    return archive.open(members[0])


_READERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"PK\x03\x04": _only_member,
    b"PK\x05\x06": _only_member,
}
"""By the first bytes of a file, not its name: browsers unpack downloads without renaming them."""


def read_unpacked(path: str | Path) -> bytes:
    """Read a file, unpacked if it is compressed with gzip, bzip2, xz or zip (of one file).

    Raises:
        DataError: the content exceeds :func:`size_limit`, or the zip file does not hold one file.
        Exception: one of :data:`READ_ERRORS`, if the file is damaged.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        reader = next((reader for mark, reader in _READERS.items() if head.startswith(mark)), None)
        if reader is None:
            return file.read()
        limit = size_limit(path)
        data: bytes = reader(file).read(limit + 1)
    if len(data) > limit:
        raise too_large(path, limit)
    return data
