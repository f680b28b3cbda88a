"""MIMIC-CXR-JPG and the reports of MIMIC-CXR, as PhysioNet releases them (and as the phantom imitates them).

Expected under the root: ``mimic-cxr-2.0.0-split.csv[.gz]``, ``mimic-cxr-2.0.0-metadata.csv[.gz]``, optionally the
label tables, and the images at ``files/p10/p10000032/s50414267/<dicom_id>.jpg``. The reports are sought, in the reports
root and then in the root, as files ``files/p10/p10000032/s50414267.txt`` or in ``mimic-cxr-reports.zip``.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from medvlp.datasets.base import Dropped, ImageTextDataset, OnError, make_table, to_numbers
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.reports import CLEANINGS, POLICIES, Sections, count_tokens, parse_report, report_text

Labels = Literal["chexpert", "negbio", "truth"]

SPLITS: dict[str, str] = {
    "train": "train",
    "validate": "validate",
    "val": "validate",
    "valid": "validate",
    "test": "test",
}
"""Accepted split names and the official ones that they stand for."""

REPORTS_ZIP = "mimic-cxr-reports.zip"
_JPG_PROJECT = "PhysioNet's MIMIC-CXR-JPG"
_PHANTOM = "or write a phantom with: medvlp phantom --layout mimic_cxr --root"


def _table(
    root: Path, stem: str, columns: Sequence[str], *, others: bool = False, needed_for: str = ""
) -> pd.DataFrame:
    """Read the named columns of <stem>.csv or <stem>.csv.gz as strings, and all others if wanted."""
    path = next((p for p in (root / f"{stem}.csv.gz", root / f"{stem}.csv") if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{root} holds neither {stem}.csv.gz nor {stem}.csv{needed_for}; download it from {_JPG_PROJECT},"
            f" {_PHANTOM} {root}"
        )
    try:
        # strings first: ids are names, and a blank ViewPosition must not become a number's NaN by accident
        header = [c.strip() for c in pd.read_csv(path, dtype=str, nrows=0).columns]
        read = None if others else (lambda name: name.strip() in columns)
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, usecols=read)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, OSError, EOFError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read ({line}); download it again from {_JPG_PROJECT}") from error
    frame.columns = frame.columns.str.strip()
    missing = [c for c in columns if c not in header]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(header)};"
            f" download it again from {_JPG_PROJECT}"
        )
    return frame


def _listed_images(root: Path, split: str, views: Sequence[str], dropped: Dropped) -> pd.DataFrame:
    """Images of a split in the chosen views: dicom_id, subject_id, study_id, view, row (in the split table)."""
    splits = _table(root, "mimic-cxr-2.0.0-split", ("dicom_id", "study_id", "subject_id", "split"))
    splits = splits[["dicom_id", "study_id", "subject_id", "split"]].assign(row=np.arange(len(splits)))
    known = set(splits["split"])
    if split not in known:
        raise DataError(f'the split table under {root} has no split "{split}"; it has {", ".join(sorted(known))}')
    splits = splits[splits["split"] == split]
    meta = _table(root, "mimic-cxr-2.0.0-metadata", ("dicom_id", "ViewPosition"))
    view_of = meta.drop_duplicates("dicom_id").set_index("dicom_id")["ViewPosition"].str.strip()
    splits["view"] = splits["dicom_id"].map(view_of)
    absent = splits["view"].isna()
    dropped.extend(splits["dicom_id"][absent], splits["row"][absent], "not in the metadata table")
    splits = splits[~absent]
    wanted = {"" if v in ("", "unknown") else v.upper() for v in views}
    upper = splits["view"].str.upper()
    keep = upper.isin(wanted)
    blank = ~keep & (upper == "")
    dropped.extend(splits["dicom_id"][blank], splits["row"][blank], "blank view")
    for view in sorted(set(upper[~keep & ~blank])):
        other = upper == view
        dropped.extend(splits["dicom_id"][other], splits["row"][other], f"view {view}")
    return splits[keep]


class _Place(NamedTuple):
    """Where a report lies."""

    path: Path | None  # file or archive
    member: str  # name in the archive, or ""
    size: int  # in bytes, −1 if there is no such report
    stamp: int  # time or checksum of the content


class _Reports:
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


def _read_sections(
    reports: _Reports, studies: pd.DataFrame, cache_dir: Path | None
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
    by_archive: dict[Path, list[int]] = {}
    for i, place in enumerate(places):
        if place.path is not None and place.member:
            by_archive.setdefault(place.path, []).append(i)
    for path, indices in by_archive.items():
        with zipfile.ZipFile(path) as archive:
            for i in indices:
                contents[i] = archive.read(places[i].member)
    result: dict[str, tuple[str, Sections | None]] = {}
    for (_, study), place, data in zip(pairs, places, contents, strict=True):
        if place.path is None or (data is None and place.size != 0):
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


def _label_table(root: Path, labels: str) -> pd.DataFrame:
    """Labels by study id: 1, 0, −1, NaN."""
    if labels == "truth":
        path = root / "truth" / "labels.csv"
        if not path.is_file():
            raise DataError(
                f"{path} is missing: labels: truth exist for phantoms only; use chexpert or negbio, {_PHANTOM} {root}"
            )
        frame = _table(root / "truth", "labels", ("study_id",), others=True)
    else:
        frame = _table(
            root, f"mimic-cxr-2.0.0-{labels}", ("study_id",), others=True, needed_for=f" (for labels: {labels})"
        )
    frame = frame.drop_duplicates("study_id").set_index("study_id")
    frame = frame.drop(columns=[c for c in ("subject_id", "split", "dicom_id") if c in frame.columns])
    where = root / "truth/labels.csv" if labels == "truth" else root / f"mimic-cxr-2.0.0-{labels}"
    return to_numbers(frame, str(where))


def read_mimic_cxr(
    root: str | Path,
    *,
    split: str,
    reports_root: str | Path | None = None,
    views: Sequence[str] = ("PA", "AP"),
    report_policy: str = "both",
    cleaning: str = "none",
    min_tokens: int = 3,
    labels: Labels | None = "chexpert",
    cache_dir: str | Path | None = None,
    on_error: OnError = "raise",
) -> ImageTextDataset:
    """Index one official split: every image of the chosen views whose study has a usable report.

    Args:
        root: folder of MIMIC-CXR-JPG.
        split: "train", "validate" ("val") or "test".
        reports_root: folder of MIMIC-CXR with the reports, if they are not under ``root``.
        views: values of ViewPosition to keep, by name; "" or "unknown" stands for a blank one.
        report_policy: see :func:`medvlp.io.reports.select_text`.
        cleaning: see :func:`medvlp.io.reports.clean_text`.
        min_tokens: studies with fewer word tokens after cleaning are dropped (MGCA: 3).
        labels: which label table, joined by study: "chexpert", "negbio", the phantom's exact "truth", or None.
            Studies that the table lacks get NaN.
        cache_dir: folder for the parsed reports (Parquet, keyed by the studies and their files); None keeps none.
            The cache holds report text: keep it as safe as the corpus.
        on_error: "raise" on a missing, empty or undecodable report file, or "skip" (drop and count) them.

    Returns:
        A dataset without a transform, in the order of the split table, with columns id (dicom_id), image, text,
        patient, study, view and the labels. ``dropped`` lists what was left out.

    Raises:
        DataError: the root, a table or a column is missing.
        UnreadableItemError: a report file is missing, empty or undecodable and ``on_error`` is "raise".
        ConfigError: an unknown split, policy or cleaning.
    """
    root = Path(root)
    for value, allowed, what in (
        (split, tuple(SPLITS), "split"),
        (report_policy, POLICIES, "report_policy"),
        (cleaning, CLEANINGS, "cleaning"),
        (labels, ("chexpert", "negbio", "truth", None), "labels"),
    ):
        if value not in allowed:
            raise ConfigError(f'{what} "{value}" is unknown; there are {", ".join(map(str, allowed))}')
    if not root.is_dir():
        raise DataError(f"the MIMIC-CXR-JPG folder {root} does not exist; download {_JPG_PROJECT}, {_PHANTOM} {root}")
    if reports_root is not None and not Path(reports_root).is_dir():
        raise DataError(
            f"the reports folder {reports_root} does not exist; download PhysioNet's MIMIC-CXR ({REPORTS_ZIP})"
        )
    dropped = Dropped()
    images = _listed_images(root, SPLITS[split], views, dropped)
    roots = [Path(reports_root), root] if reports_root is not None else [root]
    studies = images.drop_duplicates("study_id")[["subject_id", "study_id"]]
    parsed = _read_sections(_Reports(roots), studies, Path(cache_dir) if cache_dir is not None else None)
    if len(parsed) and all(problem == "missing report file" for problem, _ in parsed.values()):
        raise DataError(
            f"no report of the {split} split lies under {' or '.join(map(str, roots))}; download {REPORTS_ZIP} from"
            " PhysioNet's MIMIC-CXR into that folder, or set reports_root"
        )
    texts, reasons = {}, {}
    for study, (problem, sections) in parsed.items():
        if sections is None:
            reasons[study] = problem
            continue
        text = report_text(sections, report_policy, cleaning)
        if not text:
            nothing = "no impression or findings" if report_policy == "both" else f"no {report_policy} text"
            reasons[study] = nothing
        elif count_tokens(text) < min_tokens:
            reasons[study] = f"fewer than {min_tokens} tokens"
        else:
            texts[study] = text
    reason_of = images["study_id"].map(reasons)
    for dicom, study, row, reason in zip(images["dicom_id"], images["study_id"], images["row"], reason_of, strict=True):
        if isinstance(reason, str):
            if reason.endswith("report file") and on_error == "raise":
                raise UnreadableItemError(
                    f"{reason} of study s{study} (image {dicom}, row {row} of the split table) under"
                    f" {' or '.join(map(str, roots))}; fetch it again, or set on_error: skip",
                    item_id=f"s{study}",
                    reason=reason,
                )
            dropped.add(dicom, row, reason)
    images = images[reason_of.isna()]
    return ImageTextDataset(
        make_table(
            {
                "id": images["dicom_id"],
                "image": _image_paths(root, images),
                "text": images["study_id"].map(texts),
                "patient": images["subject_id"],
                "study": images["study_id"],
                "view": images["view"],
            },
            None if labels is None else _label_table(root, labels).reindex(images["study_id"]),
        ),
        on_error=on_error,
        dropped=dropped.frame(),
    )


def _image_paths(root: Path, images: pd.DataFrame) -> list[str]:
    """Nested as released, or flat: all images in one folder, as some mirrors have them."""

    def nested(folder: Path) -> Callable[[str, str, str], Path]:
        return lambda p, s, d: folder / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{d}.jpg"

    def flat(folder: Path) -> Callable[[str, str, str], Path]:
        return lambda p, s, d: folder / f"{d}.jpg"

    layouts = (nested(root / "files"), nested(root), flat(root / "files"), flat(root))
    keys = list(zip(images["subject_id"], images["study_id"], images["dicom_id"], strict=True))
    # the first images decide: asking for each of 377,110 files in four places takes minutes on a network disk
    layout = next((f for f in layouts if any(f(*k).is_file() for k in keys[:20])), layouts[0])
    return [str(layout(*k)) for k in keys]
