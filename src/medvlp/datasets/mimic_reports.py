"""Where the reports of MIMIC-CXR lie, and their sections, kept in a file for the next run."""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medvlp.errors import DataError
from medvlp.io.packed import READ_ERRORS
from medvlp.io.reports import Sections, parse_report
from medvlp.store import atomic_write

REPORTS_ZIP = "mimic-cxr-reports.zip"
"""The archive of all reports, as released."""

_MAX_BYTES = 1 << 20  # the longest report of the release has 10 kB
_SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),
        ("problem", pa.string()),
        ("report", pa.string()),
        ("names", pa.list_(pa.string())),
        ("texts", pa.list_(pa.string())),
    ]
)


class _Location(NamedTuple):
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
                except (*READ_ERRORS, ValueError) as error:
                    raise DataError(f"{path} is not a readable zip file; download it again") from error
                self.archives.append((path, members))

    def locate(self, subject: str, study: str) -> _Location:
        """Find a report; archives first, which costs no access to the disk."""
        name = f"s{study}.txt"
        for path, members in self.archives:
            if (hit := members.get(name)) is not None:
                return _Location(path, *hit)
        nested = f"p{subject[:2]}/p{subject}/{name}"
        names = (f"files/{nested}", nested, f"files/{name}", name)
        for path in (root / name for root in self.roots for name in names):
            try:
                status = path.stat()
            except OSError:
                continue
            return _Location(path, "", status.st_size, status.st_mtime_ns)
        return _Location(None, "", -1, 0)


def _loose(location: _Location) -> bytes | None:
    if location.path is None or location.member or not 0 < location.size <= _MAX_BYTES:
        return None
    try:
        with location.path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return None


def _read_archives(locations: list[_Location], contents: list[bytes | None]) -> set[int]:
    """Fill in the contents of the reports that lie in archives; returns which are damaged."""
    damaged: set[int] = set()
    for path in {location.path for location in locations if location.path is not None and location.member}:
        with zipfile.ZipFile(path) as archive:
            for i, location in enumerate(locations):
                # a member never unpacks to more than the size that it declares
                if location.path == path and location.member and location.size <= _MAX_BYTES:
                    try:
                        contents[i] = archive.read(location.member)
                    except (*READ_ERRORS, ValueError):
                        damaged.add(i)  # a wrong checksum, broken or encrypted data
    return damaged


def _text(location: _Location, data: bytes | None) -> tuple[str, str]:
    """What is wrong with a report file, "" if nothing, and its text."""
    if location.size > _MAX_BYTES:
        return "report larger than 1 MiB", ""
    if location.path is None or (data is None and location.size != 0):
        return "missing report file", ""
    if data is None or not data.strip():
        return "empty report file", ""
    try:
        return "", data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "undecodable report file", ""


def read_sections(
    reports: Reports, studies: pd.DataFrame, cache_dir: Path | None
) -> dict[str, tuple[str, Sections | None]]:
    """Study id to (problem or "", parsed report)."""
    pairs = list(zip(studies["subject_id"], studies["study_id"], strict=True))
    # many small files on a network disk: the threads wait for the disk, not for the interpreter
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        locations = list(pool.map(lambda p: reports.locate(*p), pairs, chunksize=64))
        cache = _cache_path(cache_dir, pairs, locations)
        if cached := _load_cache(cache, set(studies["study_id"])):
            return cached
        contents = list(pool.map(_loose, locations, chunksize=64))
    damaged = _read_archives(locations, contents)
    result: dict[str, tuple[str, Sections | None]] = {}
    for i, ((_, study), location, data) in enumerate(zip(pairs, locations, contents, strict=True)):
        problem, text = (f"damaged in {REPORTS_ZIP}", "") if i in damaged else _text(location, data)
        result[study] = (problem, None if problem else parse_report(text))
    if cache is not None and result:
        _save_cache(cache, result)
    return result


def _cache_path(cache_dir: Path | None, pairs: list[tuple[str, str]], locations: list[_Location]) -> Path | None:
    if cache_dir is None:
        return None
    digest = hashlib.blake2b(b"sections-1", digest_size=12)
    for (subject, study), location in zip(pairs, locations, strict=True):
        digest.update(f"{subject} {study} {location.size} {location.stamp}\n".encode())
    return cache_dir / f"mimic-cxr-sections-{digest.hexdigest()}.parquet"


def _save_cache(path: Path, result: dict[str, tuple[str, Sections | None]]) -> None:
    rows = [
        (study, problem, *((s.report, [n for n, _ in s.named], [t for _, t in s.named]) if s else ("", [], [])))
        for study, (problem, s) in result.items()
    ]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)]
    with atomic_write(path, private=True) as file:
        pq.write_table(pa.table(columns, schema=_SCHEMA), file)


def _load_cache(path: Path | None, studies: set[str]) -> dict[str, tuple[str, Sections | None]] | None:
    """What :func:`_save_cache` wrote, or None if it is absent or damaged."""
    if path is None or not path.is_file():
        return None
    try:
        table = pq.ParquetFile(path).read()
        if not table.schema.equals(_SCHEMA):
            raise ValueError("other columns")
        result: dict[str, tuple[str, Sections | None]] = {
            study: (problem, None if problem else Sections(report, tuple(zip(names, texts, strict=True))))
            for study, problem, report, names, texts in zip(*(c.to_pylist() for c in table.columns), strict=True)
        }
        if result.keys() != studies:
            raise ValueError("other studies")
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        warnings.warn(f"{path} is damaged ({type(error).__name__}); the reports are parsed again", stacklevel=2)
        return None
    return result
