"""What the writers of the corpus layouts share: running jobs, saving files, the truth beside them, image encoders."""

import csv
import gzip
import hashlib
import io
import json
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL import Image

from medvlp.errors import ConfigError, check_range
from medvlp.phantom import cases, render
from medvlp.phantom.layouts.labels import CHEXPERT_LABELS, LABELS
from medvlp.phantom.model import FINDINGS, PhantomSpec, RenderedView, Study, read_table
from medvlp.phantom.truth import begin_tree, finish_tree, is_complete_tree, pack_masks

ALL_CASES = 100  # from so many studies on, each odd case of the released files occurs at least once

PLUS_COLUMNS: list[str] = read_table("layouts/chexpert_plus.json")["columns"]
"""The columns of ``df_chexpert_plus_240401.csv``."""

_CHUNK = 8  # studies per message to a worker process


@dataclass(frozen=True)
class Job:
    """A study with everything that its files need to know about the whole tree; subclasses add fields."""

    study: Study
    split: str


@dataclass
class Output:
    """The files of one job, and what it adds to the tables of the tree."""

    root: Path
    key: tuple[Any, ...] = ()  # orders the rows of the whole tree
    patient: Any = None  # counted in the manifest
    images: int = 0
    lines: dict[str, list[Any]] = field(default_factory=dict)  # of each table, without line ends
    sums: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file, by its path below the root

    def add(self, table: str, *lines: Any) -> None:
        """Append lines, or pairs of sorting key and line, to a table; to one that is not written, any values."""
        self.lines.setdefault(table, []).extend(lines)

    def add_row(self, table: str, *cells: object) -> None:
        """Append a row to a table, with quotes where needed."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(cells)
        self.add(table, buffer.getvalue()[:-1])

    def save(self, path: str, data: bytes) -> None:
        """Write a file to ``path`` below the root, and make its folders."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.sums[path] = hashlib.sha256(data).hexdigest()

    def save_masks(self, image_id: str, study: Study, view: RenderedView) -> None:
        """Write ``truth/masks/<image_id>.npz`` and the rows of ``truth/boxes.csv``, in pixels of the saved image."""
        names = [finding.name for finding in study.findings]
        self.images += 1
        self.save(f"truth/masks/{image_id}.npz", pack_masks(names, view))
        for name, boxes in zip(names, view.boxes, strict=True):
            for box in boxes:
                self.add_row("truth/boxes.csv", image_id, name, *box)

    def save_truth(
        self, image_id: str, job: Job, view: RenderedView, mentions: Mapping[str, float] | None = None
    ) -> None:
        """Write the masks of an image, by the plain file name ``image_id``, and its rows of the tables of truth.

        ``patient`` and ``study`` are the positions in the phantom, the same in every layout of one spec. The row of
        labels holds all that there is to see, shown by this projection or not.
        """
        study, patient, number = job.study, job.study.patient.index, job.study.index
        self.save_masks(image_id, study, view)
        self.add_row("truth/labels.csv", image_id, patient, number, job.split, *study.labels.astype(int))
        record = {"image_id": image_id, "patient": patient, "study": number, "split": job.split}
        record |= {"view": view.view, "reader": study.reader, "findings": [f.as_dict() for f in study.findings]}
        self.add("truth/findings.jsonl", json.dumps(record | ({} if mentions is None else {"mentions": mentions})))


J = TypeVar("J", bound=Job)


class Layout(ABC, Generic[J]):
    """The writer of a layout: a subclass plans the jobs and writes the files of one; ``layouts.json`` has the names.

    Attributes:
        folders: below the root; they exist even if they stay empty.
        tables: path below the root to the header, if the table has one.
        counted: name of a count in the manifest to the table whose lines are counted.
        entries: names of all files and folders in the root of a tree, except the manifest.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        forms = read_table("layouts/layouts.json")
        form = forms["every layout"] | forms[self.name]
        columns = {"findings": FINDINGS, "chexpert": CHEXPERT_LABELS, "mimic": LABELS, "plus": PLUS_COLUMNS}
        names = {key: ",".join(some) for key, some in columns.items()}
        self.folders: list[str] = form["folders"]
        self.counted: dict[str, str] = form["counted"]
        self.tables: dict[str, str | None] = {}
        for table, header in (form["tables"] | form["truth_tables"]).items():
            lines = ("," if ".csv" in table else "\n").join(header) if isinstance(header, list) else header
            self.tables[table] = lines and lines.format(**names)
        self.entries = {path.split("/")[0] for path in (*self.folders, *self.tables)}

    @abstractmethod
    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[J]:
        """Plan one job for each study that is written, from all studies of the phantom and their splits."""

    @abstractmethod
    def write_job(self, spec: PhantomSpec, job: J, out: Output) -> None:
        """Write the files of one job and set ``out.key``; runs in other processes if there are several workers."""

    def lines(self, table: str, outputs: Sequence[Output]) -> list[str]:
        """Return the lines of a table from the outputs, sorted by their keys; pairs (key, line) by that key."""
        lines = lines_of(outputs, table)
        if lines and isinstance(lines[0], tuple):
            return [line for _, line in sorted(lines, key=lambda pair: pair[0])]
        return lines

    def facts(self, spec: PhantomSpec, outputs: Sequence[Output]) -> dict[str, Any]:
        """Return the counts for the manifest."""
        patients = {out.patient for out in outputs} - {None}
        facts = {"studies": len(outputs), "images": sum(out.images for out in outputs), "patients": len(patients)}
        return facts | {name: len(lines_of(outputs, table)) for name, table in self.counted.items()}

    def digest(self, root: Path, index: Sequence[str]) -> str:
        """Return the SHA-256 over the index of the tree's files: lines as of ``sha256sum``, sorted by path."""
        return sha256_of(index)

    def write(
        self,
        spec: PhantomSpec,
        root: Path,
        *,
        workers: int = 1,
        progress: Callable[[int], None] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write a tree, see :func:`medvlp.phantom.write_phantom`: every job, then the tables, last the manifest."""
        check_range("[1, inf)", workers=workers)
        if is_complete_tree(root, self.name, spec):
            return root
        studies = [(study, cases.split_of(spec, study.patient.index)) for study in cases.sample_studies(spec)]
        jobs = self.jobs(spec, studies)
        begin_tree(root, self.name, spec, self.entries, overwrite=overwrite)
        for folder in ("truth/masks", *self.folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
        outputs: list[Output] = []
        for chunk in self._run(root, spec, jobs, workers):
            outputs += chunk
            if progress is not None:
                progress(len(outputs))
        outputs.sort(key=lambda out: out.key)
        sums = {path: digest for out in outputs for path, digest in out.sums.items()}
        for name, header in self.tables.items():
            sums[name] = write_lines(root, name, header, self.lines(name, outputs))
        index = [f"{digest}  {path}" for path, digest in sorted(sums.items())]
        finish_tree(root, self.name, spec, self.facts(spec, outputs) | {"sha256": self.digest(root, index)})
        return root

    def _run(self, root: Path, spec: PhantomSpec, jobs: Sequence[J], workers: int) -> Iterator[list[Output]]:
        chunks = [(root, spec, jobs[start : start + _CHUNK]) for start in range(0, len(jobs), _CHUNK)]
        if workers == 1 or len(chunks) < 2:
            yield from map(self._write_chunk, chunks)
            return
        # Not multiprocessing.Pool, which keeps starting processes when a script without a guard ends each at its start.
        context = multiprocessing.get_context("spawn")
        try:
            # Ctrl-C reaches the main process alone, which ends the others.
            ignored = (signal.SIGINT, signal.SIG_IGN)
            count = min(workers, len(chunks))
            with ProcessPoolExecutor(count, mp_context=context, initializer=signal.signal, initargs=ignored) as pool:
                yield from pool.map(self._write_chunk, chunks)
        except BrokenProcessPool as error:
            raise ConfigError(
                f"the processes that write the phantom ended at their start ({error}); put what your script does under "
                'if __name__ == "__main__":, or use one worker'
            ) from error

    def _write_chunk(self, chunk: tuple[Path, PhantomSpec, Sequence[J]]) -> list[Output]:
        root, spec, jobs = chunk
        outputs = []
        for job in jobs:
            outputs.append(Output(root))
            self.write_job(spec, job, outputs[-1])
        return outputs


def random(count: int, *seed: int) -> list[float]:
    """Return the first numbers in [0, 1) of a seed."""
    return np.random.default_rng(seed).random(count).tolist()


def choose(shares: Mapping[str, float], draw: float) -> str:
    """Return the name whose cumulated share a draw from [0, 1) falls into."""
    return next(name for name, most in shares.items() if draw < most)


def frontal(spec: PhantomSpec, study: Study) -> RenderedView:
    """Draw the frontal view of a study."""
    return render.render_view(study, study.views[0], spec.size, spec.difficulty)


def mask_of(study: Study, view: RenderedView, names: Collection[str]) -> np.ndarray:
    """Return the union of the masks of all findings with one of these names, (H, W) bool."""
    masks = [mask for finding, mask in zip(study.findings, view.masks, strict=True) if finding.name in names]
    return np.logical_or.reduce([np.zeros(view.image.shape, dtype=bool), *masks])


def lines_of(outputs: Iterable[Output], table: str) -> list[Any]:
    """Return all lines of one table, in the order of ``outputs``."""
    return [line for out in outputs for line in out.lines.get(table, ())]


def write_lines(root: Path, name: str, header: str | None, lines: Iterable[str]) -> str:
    """Write a table to ``name`` below ``root``, compressed if it ends in ".gz"; return its SHA-256."""
    data = "".join(f"{line}\n" for line in (*(() if header is None else (header,)), *lines)).encode()
    # A fixed time in the header: the same table is the same bytes.
    data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
    (root / name).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def sha256_of(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines of text."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def encode_image(pixels: np.ndarray, kind: str, mode: str = "L") -> bytes:
    """Encode (H, W) uint8 grey levels as a "JPEG" or "PNG" file of Pillow's mode "L", "RGB" or "RGBA" (opaque)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, quality=95)
    return buffer.getvalue()
