"""The reports of Open-I: XML files, loose or in the released archive, to sections, images and labels."""

import io
import re
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from medvlp.datasets.tables import RELEASED
from medvlp.errors import DataError
from medvlp.io.packed import READ_ERRORS, read_unpacked
from medvlp.io.reports import Sections

FOLDER = "ecgen-radiology"
ARCHIVE = "NLMCXR_reports.tgz"

_MAX_BYTES = 1 << 20  # the longest report of the release has 9 kB
_NAME = re.compile(r"(?:^|/)(\d+)\.xml$")
_DECLARED = re.compile(r"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)

MESH_LABELS: dict[str, list[str]] = RELEASED["labels"]["open_i"]
"""Label to the major terms that stand for it, in lower case. A term is a heading, or a heading and a qualifier that
must follow it somewhere: "nodule/lung" takes Nodule/lung/lingula and not Nodule/breast."""

NO_FINDING = "No Finding"
LABELS: tuple[str, ...] = (NO_FINDING, *MESH_LABELS)
_NORMAL, _NOT_INDEXED = "normal", "no indexing"


@dataclass(frozen=True)
class OpenIReport:
    """One report: its uId, sections, image ids in order, and major terms as they stand."""

    study: str
    sections: Sections
    images: tuple[str, ...]
    terms: tuple[str, ...]

    @property
    def labels(self) -> Mapping[str, float]:
        """Label to 1 or 0; empty for a report that was not indexed."""
        paths = [[" ".join(part.split()).lower() for part in term.split("/")] for term in self.terms]
        if not paths or any(path[0] == _NOT_INDEXED for path in paths):
            return {}
        labels = {NO_FINDING: float(all(path[0] == _NORMAL for path in paths))}
        for label, terms in MESH_LABELS.items():
            labels[label] = float(any(_stands_for(path, term) for path in paths for term in terms))
        return labels


def _stands_for(path: Sequence[str], term: str) -> bool:
    heading, _, qualifier = term.partition("/")
    return path[0] == heading and (not qualifier or qualifier in path[1:])


@dataclass(frozen=True)
class ReportFile:
    """A report file: its number, its place (path, or archive and member), and the content, cut if it is too long."""

    number: int
    place: str
    data: bytes


def report_files(root: Path, remedy: str) -> list[ReportFile]:
    """All report files, by number: of the folder if it is there, else of the archive, which is not unpacked."""
    source = root / FOLDER if (root / FOLDER).is_dir() else root / ARCHIVE
    if not source.exists():
        raise DataError(f"{root} has neither {FOLDER}/ nor {ARCHIVE}; get the reports from {remedy}")
    files = _loose(source) if source.name == FOLDER else _archived(source, remedy)
    if not files:
        raise DataError(f"{source} holds no report; get the reports from {remedy}")
    files.sort(key=lambda file: file.number)
    for one, other in pairwise(files):
        if one.number == other.number:
            raise DataError(f"{one.place} and {other.place} have one number; get the reports again from {remedy}")
    return files


def _loose(folder: Path) -> list[ReportFile]:
    files = []
    for path in folder.iterdir():
        if (match := _NAME.search(path.name)) is not None and path.is_file():
            with path.open("rb") as file:
                files.append(ReportFile(int(match[1]), str(path), file.read(_MAX_BYTES + 1)))
    return files


def _archived(archive: Path, remedy: str) -> list[ReportFile]:
    files: list[ReportFile] = []
    try:
        # as a stream, since tarfile reads headers of any size at once
        with tarfile.open(fileobj=io.BytesIO(read_unpacked(archive)), mode="r|") as members:
            for member in members:
                match = _NAME.search(member.name)
                if match is None or not member.isfile():
                    continue
                file = members.extractfile(member)
                data = b"" if file is None else file.read(_MAX_BYTES + 1)
                files.append(ReportFile(int(match[1]), f"{archive}, {member.name}", data))
    except (*READ_ERRORS, tarfile.TarError, ValueError, MemoryError) as error:
        raise DataError(f"{archive} cannot be read ({type(error).__name__}); get it again from {remedy}") from error
    return files


def parse(data: bytes) -> OpenIReport:
    """Parse one report.

    Document types and entities are refused before any parser sees the text, and so are files far larger than a
    report: an entity can stand for any amount of text, or for a local file.

    Raises:
        ValueError: with the reason, in a few words without any of the text.
    """
    if not data.strip():
        raise ValueError("empty report file")
    if len(data) > _MAX_BYTES:
        raise ValueError("report larger than 1 MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("undecodable report file") from None
    if _DECLARED.search(text):
        raise ValueError("XML with a document type or entities")
    try:
        top = ET.fromstring(text)  # a str, so that no other encoding can be declared
    except (ET.ParseError, ValueError, RecursionError):
        raise ValueError("XML that does not parse") from None
    identifier = top.find("uId")
    study = "" if identifier is None else identifier.get("id", "").strip()
    if not study:
        raise ValueError("XML without a uId")
    named = []
    for element in top.iter("AbstractText"):
        body = " ".join("".join(element.itertext()).split())
        if body:
            named.append((element.get("Label", "").strip().lower(), body))
    report = "\n".join(f"{label.upper()}: {body}" for label, body in named)
    images = tuple(element.get("id", "").strip() for element in top.iter("parentImage"))
    terms = tuple(t for element in top.iter("major") if (t := (element.text or "").strip()))
    return OpenIReport(study, Sections(report, tuple(named)), images, terms)
