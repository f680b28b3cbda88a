"""Checksum files that a corpus carries, as ``sha256sum`` writes them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from medvlp.datasets.tables import relative_path
from medvlp.doctor.findings import Case, Finding, Level, Progress
from medvlp.store import file_sha256

State = Literal["right", "wrong", "absent", "unread"]

_LINE = re.compile(
    r"\\?(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)|SHA256 \((?P<file>.+)\) = (?P<sum>[0-9a-fA-F]{64})"
)
_LEVELS: dict[State, tuple[Level, str]] = {
    "wrong": ("error", "files differ from {}"),
    "unread": ("warning", "lines of {} are no checksums"),
    "absent": ("note", "files of {} are not there"),
    "right": ("ok", "files are as {} says"),
}


def verify_sums(folder: Path, progress: Progress | None = None) -> Iterator[tuple[str, dict[State, list[str]], str]]:
    """Compare the files of a folder with each checksum file in it.

    Yields:
        Name of the checksum file, files (or lines) by state, and why it is unreadable, "" if it is not.
    """
    for path in (folder / "SHA256SUMS.txt", folder / "SHA256SUMS"):
        if not path.is_file():
            continue
        states: dict[State, list[str]] = {state: [] for state in _LEVELS}
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            yield path.name, states, f"cannot be read ({type(error).__name__})"
            continue
        for number, line in enumerate(lines, 1):
            if progress is not None:
                progress("verifying checksums", number, len(lines))
            if line.strip() and not line.startswith("#"):
                match = _LINE.fullmatch(line.rstrip())
                name = relative_path(match["name"] or match["file"]) if match else ""
                if match and name:
                    states[_compare(folder / name, (match["digest"] or match["sum"]).lower())].append(name)
                else:
                    states["unread"].append(f"line {number}")
        yield path.name, states, ""


def _compare(path: Path, digest: str) -> State:
    try:
        return "right" if file_sha256(path) == digest else "wrong"
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except (OSError, ValueError):
        return "wrong"


def check_sums(case: Case) -> Iterator[Finding]:
    """Verify ``SHA256SUMS`` of the corpus, its images and its reports, if every byte is to be read."""
    if not case.deep:
        return
    corpus, compared = case.corpus, False
    again = f"get them again from {corpus.source}"
    reports = getattr(corpus, "reports_root", None)
    for folder in dict.fromkeys(f for f in (corpus.root, corpus.image_root, reports) if f is not None):
        for name, states, problem in verify_sums(folder, case.progress):
            compared = True
            if problem:
                yield Finding("checksums", "error", f"{name} {problem}", remedy=again)
            for state, (level, text) in _LEVELS.items():
                items = () if state == "right" else tuple(states[state])
                if states[state] and not (state == "right" and states["wrong"]):
                    counted = f"{len(states[state]):,} {text.format(name)}"
                    yield Finding("checksums", level, counted, remedy=again if level == "error" else "", items=items)
    if not compared and not case.diagnosis.phantom:
        yield Finding("checksums", "note", "no SHA256SUMS here, so bytes that changed and still decode are not seen")
