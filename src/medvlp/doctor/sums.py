"""Checksum files that a corpus carries, as ``sha256sum`` writes them."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medvlp.datasets.tables import relative_path
from medvlp.doctor.case import Case, Progress
from medvlp.doctor.findings import Finding

_LINE = re.compile(
    r"\\?(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<file>.+)\) = (?P<sum>[0-9a-fA-F]{64})"
)


@dataclass
class Sums:
    """A checksum file compared with the folder; ``unread`` counts lines from 1, ``problem`` is why it is unreadable."""

    path: Path
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    problem: str = ""


def verify_sums(folder: Path, progress: Progress | None = None) -> Iterator[Sums]:
    """Compare the files of a folder with each checksum file in it."""
    for path in (folder / "SHA256SUMS.txt", folder / "SHA256SUMS"):
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
                _compare(sums, number, line.rstrip())
        yield sums


def _compare(sums: Sums, number: int, line: str) -> None:
    match = _LINE.fullmatch(line)
    name = relative_path(match["name"] or match["file"]) if match else ""
    if not match or not name:
        sums.unread.append(number)
        return
    try:
        with (sums.path.parent / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        sums.absent.append(name)
    except (OSError, ValueError):
        sums.wrong.append(name)
    else:
        if digest == (match["digest"] or match["sum"]).lower():
            sums.right += 1
        else:
            sums.wrong.append(name)


def check_sums(case: Case) -> Iterator[Finding]:
    """Verify ``SHA256SUMS`` of the corpus, its images and its reports, if every byte is to be read."""
    if not case.deep:
        return
    corpus, compared = case.corpus, False
    again = f"get them again from {corpus.source}"
    reports = getattr(corpus, "reports_root", None)
    for folder in dict.fromkeys(f for f in (corpus.root, corpus.image_root, reports) if f is not None):
        for sums in verify_sums(folder, case.progress):
            name, compared = sums.path.name, True
            if sums.problem:
                yield Finding("checksums", "error", f"{name} {sums.problem}", remedy=again)
            if sums.wrong:
                text = f"{len(sums.wrong):,} files differ from {name}"
                yield Finding("checksums", "error", text, remedy=again, items=tuple(sums.wrong))
            if sums.unread:
                lines = tuple(f"line {number}" for number in sums.unread)
                yield Finding("checksums", "warning", f"{len(lines):,} lines of {name} are no checksums", items=lines)
            if sums.absent:
                text = f"{len(sums.absent):,} files of {name} are not there"
                yield Finding("checksums", "note", text, items=tuple(sums.absent))
            if sums.right and not sums.wrong:
                yield Finding("checksums", "ok", f"{sums.right:,} files are as {name} says")
    if not compared and not case.diagnosis.phantom:
        yield Finding("checksums", "note", "no SHA256SUMS here, so bytes that changed and still decode are not seen")
