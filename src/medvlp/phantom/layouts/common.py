"""What the writers of the corpus layouts share: running the jobs, saving files, the truth beside them, image encoders.

A layout plans one job for each study, writes a job's files in any process, and at last the tables from what the jobs
return (:class:`Rows`). :meth:`Layout.write` runs this; the same spec gives the same bytes, whatever the processes.
"""

import gzip
import hashlib
import io
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvlp.errors import ConfigError
from medvlp.phantom.model import FINDINGS, Finding, PhantomSpec, RenderedView, Study
from medvlp.phantom.truth import begin_tree, finish_tree, is_complete_tree, pack_masks

SMALLEST_WITH_ALL_CASES = 100
"""From so many studies on, each odd case of the released files occurs at least once."""

TRUTH_TABLES: dict[str, str | None] = {
    "truth/labels.csv": "image_id,patient,study,split," + ",".join(FINDINGS),
    "truth/boxes.csv": "image_id,finding,x0,y0,x1,y1",
    "truth/findings.jsonl": None,
}
"""The tables of truth (MIMIC-CXR has its own) and their headers."""

_CHUNK = 8  # studies per message to a worker process


@dataclass
class Rows:
    """What one job adds to the tables of a tree.

    Args:
        key: orders the rows of the whole tree.
        lines: table name to its lines, without line ends.
        sums: (path below the root with "/", SHA-256) of each released-form file that the job wrote.
        truth_sums: the same for files below ``truth/``.
    """

    key: tuple[Any, ...]
    lines: dict[str, list[str]] = field(default_factory=dict)
    sums: list[tuple[str, str]] = field(default_factory=list)
    truth_sums: list[tuple[str, str]] = field(default_factory=list)

    def add(self, table: str, *lines: str) -> None:
        """Appends lines to a table.

        Args:
            table: name of the table.
            *lines: without line ends.
        """
        self.lines.setdefault(table, []).extend(lines)


def lines_of(rows: Iterable[Rows], table: str) -> list[str]:
    """All lines of one table, in the order of ``rows``; empty where no job added any."""
    return [line for row in rows for line in row.lines.get(table, ())]


@dataclass(frozen=True)
class Layout:
    """The writer of a layout: what it makes, and the functions that make it.

    Args:
        name: of the layout.
        entries: names of all files and folders that the writer makes directly in the root, but for the manifest.
        folders: folders below the root that exist even if they stay empty.
        jobs: plans the tree, one job for each study; runs before the root is touched.
        write_job: writes the files of one job. With more than one worker it runs in other processes, so it and the
            jobs must be picklable (a function of a module).
        write_tables: writes the tables from the rows, which come sorted by key, and gives facts for the manifest
            (counts). A ``sha256`` among them replaces the digest over all files that is put there otherwise.
    """

    name: str
    entries: Sequence[str]
    folders: Sequence[str]
    jobs: Callable[[PhantomSpec], Sequence[Any]]
    write_job: Callable[[Path, PhantomSpec, Any], Rows]
    write_tables: Callable[[Path, PhantomSpec, list[Rows]], dict[str, Any]]

    def is_complete(self, root: Path, spec: PhantomSpec) -> bool:
        """Whether ``root`` holds a finished tree of ``spec``.

        Args:
            root: folder of the tree; it need not exist.
            spec: what the tree must have been written from.
        """
        return is_complete_tree(Path(root), self.name, spec)

    def write(
        self,
        spec: PhantomSpec,
        root: Path,
        *,
        workers: int = 1,
        progress: Callable[[int], None] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes the tree of a phantom: the files of every job, then the tables, last the manifest.

        Args:
            spec: what to write.
            root: folder of the tree, made if needed.
            workers: number of processes, at least 1; the bytes do not depend on it.
            progress: called with the number of studies finished so far.
            overwrite: whether another phantom in ``root`` is replaced.

        Returns:
            ``root``. A complete tree of the same spec is left as it is.

        Raises:
            ConfigError: a setting is out of its range.
            DataError: ``root`` holds something else.
        """
        root = Path(root)
        if workers < 1:
            raise ConfigError(f"workers is {workers}; give at least 1.")
        if self.is_complete(root, spec):
            return root
        planned = self.jobs(spec)
        begin_tree(root, self.name, spec, self.entries, overwrite=overwrite)
        for folder in ("truth/masks", *self.folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
        rows: list[Rows] = []
        for done in _run(root, spec, planned, self.write_job, workers):
            rows += done
            if progress is not None:
                progress(len(rows))
        rows.sort(key=lambda row: row.key)
        facts = self.write_tables(root, spec, rows)
        if "sha256" not in facts:
            facts["sha256"] = _digest(root, self.entries, rows)
        finish_tree(root, self.name, spec, facts)
        return root


def _run(
    root: Path, spec: PhantomSpec, jobs: Sequence[Any], write_job: Callable[..., Rows], workers: int
) -> Iterator[list[Rows]]:
    chunks = [(write_job, root, spec, jobs[start : start + _CHUNK]) for start in range(0, len(jobs), _CHUNK)]
    if workers == 1 or len(chunks) < 2:
        yield from map(_write_chunk, chunks)
        return
    # Not multiprocessing.Pool, which goes on starting processes when a script without a guard kills each at its start.
    context = multiprocessing.get_context("spawn")
    try:
        # Ctrl-C reaches the main process alone, which ends the others.
        ignored = (signal.SIGINT, signal.SIG_IGN)
        count = min(workers, len(chunks))
        with ProcessPoolExecutor(count, mp_context=context, initializer=signal.signal, initargs=ignored) as pool:
            yield from pool.map(_write_chunk, chunks)
    except BrokenProcessPool as error:
        raise ConfigError(
            f"the processes that write the phantom ended at their start ({error}); put what your script does under "
            'if __name__ == "__main__":, or write with one worker'
        ) from error


def _write_chunk(task: tuple[Callable[..., Rows], Path, PhantomSpec, Sequence[Any]]) -> list[Rows]:
    write_job, root, spec, jobs = task
    return [write_job(root, spec, job) for job in jobs]


def _digest(root: Path, entries: Sequence[str], rows: list[Rows]) -> str:
    """SHA-256 over the index of all files; only those that no job has hashed are read again."""
    sums = dict(pair for row in rows for pair in (*row.sums, *row.truth_sums))
    for entry in entries:
        path = root / entry
        for file in (path,) if path.is_file() else sorted(path.rglob("*")):
            name = file.relative_to(root).as_posix()
            if name not in sums and file.is_file():
                sums[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    index = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return hashlib.sha256(index.encode()).hexdigest()


def save_file(root: Path, path: str, data: bytes, rows: Rows, truth: bool = False) -> None:
    """Writes one file of a job and notes its checksum.

    Args:
        root: folder of the tree.
        path: where below ``root``, with "/"; folders are made.
        data: the content.
        rows: rows of the job.
        truth: whether the file is truth and not in the released form.
    """
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    (rows.truth_sums if truth else rows.sums).append((path, hashlib.sha256(data).hexdigest()))


def save_masks(root: Path, rows: Rows, image_id: str, study: Study, view: RenderedView) -> None:
    """Writes ``truth/masks/<image_id>.npz`` and adds the boxes to ``truth/boxes.csv``.

    Args:
        root: folder of the tree.
        rows: rows of the job.
        image_id: what the layout calls the image; a plain file name.
        study: whose findings the masks show.
        view: masks and boxes, in pixels of the saved image.
    """
    names = [finding.name for finding in study.findings]
    save_file(root, f"truth/masks/{image_id}.npz", pack_masks(names, view), rows, truth=True)
    for name, boxes in zip(names, view.boxes, strict=True):
        rows.add("truth/boxes.csv", *(f"{image_id},{name},{','.join(str(int(x)) for x in box)}" for box in boxes))


def save_truth(
    root: Path,
    rows: Rows,
    image_id: str,
    study: Study,
    view: RenderedView,
    *,
    split: str = "",
    mentions: Mapping[str, float] | None = None,
) -> None:
    """Writes the masks of an image and adds its rows to the tables of truth; see :data:`TRUTH_TABLES`.

    ``patient`` and ``study`` are the positions in the phantom, the same in every layout of one spec.

    Args:
        root: folder of the tree.
        rows: rows of the job.
        image_id: what the layout calls the image; a plain file name.
        study: what there is to see. The label row holds all of it, shown by this projection or not.
        view: masks and boxes, in pixels of the saved image.
        split: the patient's split, where the layout has splits.
        mentions: what the report says, where the layout has reports.
    """
    save_masks(root, rows, image_id, study, view)
    patient, number = study.patient.index, study.index
    rows.add("truth/labels.csv", f"{image_id},{patient},{number},{split},{truth_flags(study)}")
    record = {"image_id": image_id, "patient": patient, "study": number, "split": split, "view": view.view}
    record |= {"reader": study.reader, "findings": [describe_finding(f) for f in study.findings]}
    if mentions is not None:
        record["mentions"] = dict(mentions)
    rows.add("truth/findings.jsonl", json.dumps(record))


def truth_flags(study: Study) -> str:
    """The exact labels as 18 cells "0" or "1", joined by commas, in the order of ``FINDINGS``."""
    present = {finding.name for finding in study.findings}
    return ",".join("1" if name in present else "0" for name in FINDINGS)


def describe_finding(finding: Finding) -> dict[str, Any]:
    """A finding as plain JSON, without its drawing seed."""
    return {
        "name": finding.name,
        "side": finding.side,
        "zone": finding.zone,
        "severity": finding.severity,
        "size_mm": finding.size_mm,
        "subtype": finding.subtype,
    }


def write_truth_tables(root: Path, rows: list[Rows]) -> None:
    """Writes the tables of truth from what :func:`save_truth` noted.

    Args:
        root: folder of the tree.
        rows: of all jobs, sorted.
    """
    for name, header in TRUTH_TABLES.items():
        write_lines(root, name, header, lines_of(rows, name))


def write_lines(
    root: Path,
    name: str,
    header: str | None,
    lines: Iterable[str],
    *,
    newline: str = "\n",
    encoding: str = "utf-8",
    compress: bool = False,
) -> tuple[str, str]:
    """Writes a table.

    Args:
        root: folder of the tree.
        name: path below ``root``, with "/"; folders are made.
        header: first line, or None.
        lines: the other lines, without line ends.
        newline: end of every line, the last one too.
        encoding: of the file.
        compress: whether the file is gzip.

    Returns:
        The name and the SHA-256 of the file.
    """
    text = "".join(line + newline for line in ((header,) if header is not None else ()))
    text += "".join(line + newline for line in lines)
    data = text.encode(encoding)
    # A fixed time in the header: the same table is the same bytes.
    data = gzip.compress(data, mtime=0) if compress else data
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name, hashlib.sha256(data).hexdigest()


def encode_jpeg(pixels: np.ndarray, quality: int = 95, rgb: bool = False) -> bytes:
    """Grey levels as a JPEG file, the same bytes for the same pixels.

    Args:
        pixels: (H, W) uint8.
        quality: Pillow's quality, 1 to 95.
        rgb: whether the file has three (equal) channels.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert("RGB") if rgb else image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(pixels: np.ndarray, mode: str = "L") -> bytes:
    """Grey levels as a PNG file, the same bytes for the same pixels.

    Args:
        pixels: (H, W) uint8, or uint16 for the mode "I;16".
        mode: Pillow's mode of the file: "L", "RGB", "RGBA" (opaque) or "I;16".
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image if image.mode == mode else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()
