"""Where the reports of MIMIC-CXR lie, and their sections, kept in a file for the next run."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from medvlp.errors import DataError
from medvlp.io.reports import Sections, parse_report

REPORTS_ZIP = "mimic-cxr-reports.zip"
"""The archive of all reports, as released."""


class _Place(NamedTuple):
    """Where a report lies."""

    path: Path | None  # file or archive
    member: str  # name in the archive, or ""
    size: int  # in bytes, −1 if there is no such report
    stamp: int  # time or checksum of the content


class Reports:
    """Report files by (subject, study), wherever they lie."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self.archives: list[tuple[Path, dict[str, tuple[str, int, int]]]] = []
        for path in (r / REPORTS_ZIP for r in roots):
            if path.is_file():
                try:
                    with zipfile.ZipFile(path) as archive:
                        # keyed by the file name: study ids are unique, and mirrors differ in the leading folder
                        members = {
                            i.filename.rsplit("/", 1)[-1]: (i.filename, i.file_size, i.CRC) for i in archive.infolist()
                        }
                except zipfile.BadZipFile as error:
                    raise DataError(f"{path} is not a readable zip file; download it again") from error
                self.archives.append((path, members))

    def files(self, subject: str, study: str) -> list[Path]:
        """Where a report may lie, nested as released or flat."""
        name = f"s{study}.txt"
        group, patient = f"p{subject[:2]}", f"p{subject}"
        below = (Path("files") / group / patient / name, Path(group) / patient / name, Path("files") / name, Path(name))
        return [root / b for root in self.roots for b in below]

    def locate(self, subject: str, study: str) -> _Place:
        """Find a report; archives first, which costs no access to the disk."""
        for path, members in self.archives:
            if (hit := members.get(f"s{study}.txt")) is not None:
                return _Place(path, *hit)
        for path in self.files(subject, study):
            try:
                status = path.stat()
            except OSError:
                continue
            return _Place(path, "", status.st_size, status.st_mtime_ns)
        return _Place(None, "", -1, 0)


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def read_sections(
    reports: Reports, studies: pd.DataFrame, cache_dir: Path | None
) -> dict[str, tuple[str, Sections | None]]:
    """Study id to (problem or "", parsed report)."""
    pairs = list(zip(studies["subject_id"], studies["study_id"], strict=True))
    # many small files on a network disk: the threads wait for the disk, not for the interpreter
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        places = list(pool.map(lambda p: reports.locate(*p), pairs, chunksize=64))
        cache = _cache_path(cache_dir, pairs, places)
        if cache is not None and cache.is_file() and (cached := _load_cache(cache)) is not None:
            return cached

        def from_file(place: _Place) -> bytes | None:
            if place.path is None or place.member or place.size == 0:
                return None
            try:
                return place.path.read_bytes()
            except OSError:
                return None

        contents = list(pool.map(from_file, places, chunksize=64))
    damaged: set[int] = set()
    by_archive: dict[Path, list[int]] = {}
    for i, place in enumerate(places):
        if place.path is not None and place.member:
            by_archive.setdefault(place.path, []).append(i)
    for path, indices in by_archive.items():
        with zipfile.ZipFile(path) as archive:
            for i in indices:
                try:
                    contents[i] = archive.read(places[i].member)
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
                    damaged.add(i)  # a wrong checksum, broken or encrypted data
    result: dict[str, tuple[str, Sections | None]] = {}
    for i, ((_, study), place, data) in enumerate(zip(pairs, places, contents, strict=True)):
        if i in damaged:
            result[study] = (f"damaged in {REPORTS_ZIP}", None)
        elif place.path is None or (data is None and place.size != 0):
            result[study] = ("missing report file", None)
        elif data is None or not data.strip():
            result[study] = ("empty report file", None)
        elif (text := _decode(data)) is None:
            result[study] = ("undecodable report file", None)
        else:
            result[study] = ("", parse_report(text))
    if cache is not None:
        _save_cache(cache, result)
    return result


def _cache_path(cache_dir: Path | None, pairs: list[tuple[str, str]], places: list[_Place]) -> Path | None:
    if cache_dir is None:
        return None
    digest = hashlib.blake2b(b"sections-1", digest_size=12)
    for (subject, study), place in zip(pairs, places, strict=True):
        digest.update(f"{subject} {study} {place.size} {place.stamp}\n".encode())
    return cache_dir / f"mimic-cxr-sections-{digest.hexdigest()}.parquet"


def _save_cache(path: Path, result: dict[str, tuple[str, Sections | None]]) -> None:
    frame = pd.DataFrame(
        {
            "study_id": list(result),
            "problem": [problem for problem, _ in result.values()],
            "report": [s.report if s else "" for _, s in result.values()],
            "names": [[n for n, _ in s.named] if s else [] for _, s in result.values()],
            "texts": [[t for _, t in s.named] if s else [] for _, s in result.values()],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    frame.to_parquet(part, index=False)
    part.replace(path)  # whole or not at all, also when several processes index at once


def _load_cache(path: Path) -> dict[str, tuple[str, Sections | None]] | None:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):
        return None  # a broken cache is written anew
    columns = (frame[c] for c in ("study_id", "problem", "report", "names", "texts"))
    return {
        study: (problem, None if problem else Sections(report, tuple(zip(names, texts, strict=True))))
        for study, problem, report, names, texts in zip(*columns, strict=True)
    }
