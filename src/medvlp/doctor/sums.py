"""Checksum files that a corpus carries, as ``sha256sum`` writes them."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medvlp.datasets.tables import relative_path
from medvlp.doctor.pixels import Progress

SUMS: tuple[str, ...] = ("SHA256SUMS.txt", "SHA256SUMS")
_LINE = re.compile(
    r"\\?(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<file>.+)\) = (?P<sum>[0-9a-fA-F]{64})"
)


@dataclass
class Sums:
    """What a checksum file says against what is there.

    Args:
        path: the checksum file.
        right: number of files that have their checksum.
        wrong: those that have another one, or cannot be read.
        absent: those that are not there.
        unread: lines, from 1, that are no checksum of a file below the folder.
        problem: why the checksum file itself cannot be read, "" if it can.
    """

    path: Path
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    problem: str = ""


def verify_sums(folder: Path, progress: Progress | None = None) -> Iterator[Sums]:
    """Hold the files of a folder against each checksum file in it.

    Args:
        folder: names in a checksum file are relative to it.
        progress: called for each line.
    """
    for path in (folder / name for name in SUMS):
        if not path.is_file():
            continue
        sums = Sums(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            sums.problem, lines = f"cannot be read ({type(error).__name__})", []
        for number, line in enumerate(lines, 1):
            if progress is not None:
                progress("verifying checksums", number, len(lines))
            if line.strip() and not line.startswith("#"):
                _check(sums, number, line.rstrip())
        yield sums


def _check(sums: Sums, number: int, line: str) -> None:
    match = _LINE.fullmatch(line)
    name = relative_path(match["name"] or match["file"]) if match else ""
    if not match or not name:
        sums.unread.append(number)
        return
    try:
        with (sums.path.parent / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        sums.absent.append(name)
    except (OSError, ValueError):
        sums.wrong.append(name)
    else:
        if found == (match["digest"] or match["sum"]).lower():
            sums.right += 1
        else:
            sums.wrong.append(name)
