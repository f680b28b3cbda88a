"""The checks, in the order in which one would make them by hand: folder, tables, records, images, splits.

Nothing here knows a corpus: what is special about one, its class declares. A broken tree never raises: an error
that the reader raises on purpose is shown as it is, any other one as a fault of the reader.
"""

import copy
import json
import os
import re
import shlex
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.tables import Table, TableSpec
from medvlp.doctor.pixels import Annotations, Look, Progress, images_below, look_at_all
from medvlp.doctor.report import Check, Diagnosis, Level, SplitState, TaskState
from medvlp.doctor.sums import verify_sums
from medvlp.errors import ConfigError, MedVLPError
from medvlp.phantom.truth import MANIFEST
from medvlp.splits import Split, SplitInput, SplitLeakWarning, describe, make_split, split_names

T = TypeVar("T")

PARTIAL = MANIFEST + ".partial"
"""Claim of a phantom that is being written, or whose writing was cut short."""


class _Refusal(Exception):
    """Why something could not be done, in one line."""

    def __init__(self, text: str, *, fault: bool = False, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.fault = fault  # of the reader, not of the data
        self.cause = cause


def _attempt(call: Callable[[], T]) -> T:
    try:
        return call()
    except MedVLPError as error:
        raise _Refusal(" ".join(str(error).split()), cause=error) from error
    except Exception as error:  # the message is left out, since it may quote a report
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise _Refusal(f"the reader failed with {type(error).__name__} ({place})", fault=True, cause=error) from error


_FAULT = "this is a fault of medvlp, not of the data; please report it with the file that provokes it"


def _alike(remarks: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Group (path, remark) pairs by remark; remarks that differ in numbers alone are one, with N for them."""
    groups: dict[str, dict[str, list[str]]] = {}
    for path, remark in remarks:
        groups.setdefault(re.sub(r"\d+", "N", remark), {}).setdefault(remark, []).append(path)
    return sorted(
        (next(iter(found)) if len(found) == 1 else kind, [path for paths in found.values() for path in paths])
        for kind, found in groups.items()
    )


def examine(
    corpus: Corpus,
    *,
    options: dict[str, str] | None = None,
    lists: str | Path | None = None,
    deep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a corpus.

    Args:
        corpus: its reader; it is read with ``on_error: skip`` whatever its own setting.
        options: what it was built with, to be shown and put into the commands to type next.
        lists: folder with the authors' list files, for the splits that need them.
        deep: decode every image, draw every mask and verify ``SHA256SUMS``.
        workers: threads for the images; None chooses.
        progress: called with what is being done, how many are done, and how many there are.

    Returns:
        The diagnosis. Nothing that is wrong with the data raises.
    """
    corpus = copy.copy(corpus)
    corpus.on_error = "skip"
    _remember_tables(corpus)
    return _Examination(corpus, options or {}, lists, deep, workers, progress).run()


def _remember_tables(corpus: Corpus) -> None:
    """Let a corpus read each table once, although every task and the splits ask for it."""
    read, seen = corpus.read_table, {}

    def remembered(name: str) -> Table:
        if name not in seen:
            seen[name] = read(name)
        table = seen[name]
        return replace(table, frame=table.frame.copy(), notes=list(table.notes), repeated=list(table.repeated))

    corpus.read_table = remembered  # type: ignore[method-assign]


class _Examination:
    def __init__(
        self,
        corpus: Corpus,
        options: dict[str, str],
        lists: str | Path | None,
        deep: bool,
        workers: int | None,
        progress: Progress | None,
    ) -> None:
        self.corpus = corpus
        self.lists = lists
        self.deep = deep
        self.workers = workers
        self.progress = progress
        self.result = Diagnosis(corpus.name, corpus.title, corpus.root, options, corpus.is_phantom)
        self.absent: list[TableSpec] = []  # optional tables that are not there
        self.records: dict[Task, Records] = {}
        self.listing: SplitInput | None = None
        self.left_out: set[str] = set()  # ids that were dropped for any reason

    def run(self) -> Diagnosis:
        if self._folder():
            self._phantom()
            for spec in self.corpus.tables:
                self._table(spec)
            for task in self.corpus.tasks:
                self._task(task)
            self._dropped()
            self._images()
            if self.deep:
                self._sums()
            for name in split_names(self.corpus.name):
                self._split(name)
        self._next()
        return self.result

    def _add(
        self,
        name: str,
        level: Level,
        found: str,
        *,
        expected: str = "",
        remedy: str = "",
        items: Any = (),
    ) -> None:
        self.result.checks.append(Check(name, level, found, expected, remedy, tuple(map(str, items))))

    def _refused(self, name: str, level: Level, refusal: _Refusal, remedy: str = "") -> None:
        if refusal.fault:
            self._add(name, "error", str(refusal), remedy=_FAULT)
        else:
            self._add(name, level, str(refusal), remedy=remedy)

    # ------------------------------------------------------------------ folder and tables

    def _folder(self) -> bool:
        root = self.corpus.root
        if root.is_dir():
            try:
                empty = next(root.iterdir(), None) is None
            except OSError as error:
                self._add("folder", "error", f"cannot be listed ({type(error).__name__})", remedy="check its rights")
                return False
            if not empty:
                self._add("folder", "ok", "is there")
                return True
            found = "is empty"
        else:
            found = "is a file, not a folder" if root.exists() else "does not exist"
        self._add("folder", "error", found, expected=f"the {self.corpus.title} folder", remedy=self.corpus.remedy)
        return False

    def _phantom(self) -> None:
        root, name = self.corpus.root, self.corpus.name
        again = f"write it again: medvlp phantom --layout {name} --root {shlex.quote(str(root))} --overwrite"
        if (root / PARTIAL).exists():
            self._add("phantom", "error", "was not written to its end", remedy=again)
        elif self.result.phantom:
            try:
                manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
                layout, studies = str(manifest["layout"]), int(manifest["studies"])
                absent = [entry for entry in manifest.get("entries", ()) if not (root / str(entry)).exists()]
            except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                self._add("phantom", "error", f"{MANIFEST} cannot be read ({type(error).__name__})", remedy=again)
                return
            if layout != name:
                self._add("phantom", "error", f"a phantom in the layout of {layout}", expected=name, remedy=again)
            elif absent:
                self._add(
                    "phantom", "warning", f"{len(absent)} of its files or folders are gone", remedy=again, items=absent
                )
            else:
                self._add("phantom", "ok", f"a phantom of {studies:,} studies, not held to the counts of a release")

    def _table(self, spec: TableSpec) -> None:
        name = f"table {spec.name}"
        if not self.corpus.has_table(spec.name):
            if spec.required:
                self._add(name, "error", "is missing", remedy=f"get it from {self.corpus.remedy}")
            else:
                self.absent.append(spec)
                self._add(name, "note", f"is not there{f'; it is for {spec.needed_for}' if spec.needed_for else ''}")
            return
        try:
            table = _attempt(lambda: self.corpus.read_table(spec.name))
        except _Refusal as refusal:
            self._refused(name, "error", refusal)
            return
        self._rows(name, table)

    def _rows(self, name: str, table: Table) -> None:
        rows = len(table.frame) + len(table.repeated)
        notes = "".join(f"; {note}" for note in table.notes)
        level: Level = "note" if table.notes else "ok"
        found = f"{rows:,} rows{notes}"
        items = [f"row {row}" for row in table.repeated]
        known = table.spec.rows
        if self.result.phantom or not known:
            self._add(name, level, found, items=items)
        elif rows in known:
            self._add(name, level, f"{found} ({known[rows]})", items=items)
        else:
            closest = min(known, key=lambda count: abs(count - rows))
            what = f"{closest - rows:,} rows are missing" if rows < closest else f"{rows - closest:,} rows too many"
            expected = " or ".join(f"{count:,} ({release})" for count, release in known.items())
            self._add(
                name,
                "error" if rows < min(known) else "warning",
                f"{found}: {what}, or the file is another version",
                expected=f"{expected} rows",
                remedy=f"get it again from {self.corpus.source}",
                items=items,
            )

    # ------------------------------------------------------------------ records

    def _task(self, task: Task) -> None:
        if self.progress is not None:
            self.progress(f"reading records for {task}", 0, 0)
        name = f"task {task}"
        try:
            records = _attempt(lambda: self.corpus.records(task))
            kept = len(_attempt(lambda: self.corpus.after_split(records.table)))
        except _Refusal as refusal:
            # a table that one may well do without is no fault of the folder
            optional = task != self.corpus.tasks[0] and any(spec.name in str(refusal) for spec in self.absent)
            self._refused(name, "note" if optional else "error", refusal)
            self.result.tasks[task] = TaskState(False, reason=str(refusal))
            return
        self.records[task] = records
        if len(records):
            self.result.tasks[task] = TaskState(True, len(records))
            filters = f", {kept:,} with the filters that follow a split" if kept != len(records) else ""
            self._add(name, "ok", f"{len(records):,} records{filters}")
            if "text" in records.table.column_names:
                bare = [i for i, t in zip(records.column("id"), records.column("text"), strict=True) if not t]
                if bare:
                    self._add(f"{name}: texts", "note", f"{len(bare):,} records have none", items=bare)
        else:
            reason = "no record is left"
            self.result.tasks[task] = TaskState(False, reason=reason)
            default = task == self.corpus.tasks[0]
            self._add(name, "error" if default else "note", reason, remedy="see below what was left out")

    def _dropped(self) -> None:
        frames = [records.dropped for records in self.records.values()]
        if not frames:
            return
        dropped = pd.concat(frames, ignore_index=True).drop_duplicates(["id", "row", "reason", "broken"])
        self.left_out = set(dropped["id"])
        # "ends at 4032 of 2304 pixels": one check for all of a kind
        kind = dropped["reason"].map(lambda reason: re.sub(r"\d+", "N", reason))
        for (broken, any_number), rows in dropped.groupby([dropped["broken"], kind], sort=True):
            reason = any_number if len(set(rows["reason"])) > 1 else rows["reason"].iloc[0]
            items = [
                f"{item or 'no id'}{f' (row {row})' if row >= 0 else ''}"
                for item, row in zip(rows["id"], rows["row"], strict=True)
            ]
            remedy = f"get the files again from {self.corpus.source}" if broken else ""
            self._add(
                "records broken" if broken else "records left out",
                "error" if broken else "note",
                f"{len(items):,}: {reason}",
                remedy=f"{remedy}, or set on_error: skip to go on without them" if broken else "",
                items=items,
            )

    # ------------------------------------------------------------------ images

    def _annotations(self) -> dict[str, Annotations]:
        shapes: dict[str, dict[str, None]] = {}
        boxes: dict[str, dict[tuple[float, ...], None]] = {}
        for records in self.records.values():
            columns = records.table.column_names
            paths = records.table.column("image").to_pylist()
            for path in paths:
                shapes.setdefault(path, {})
                boxes.setdefault(path, {})
            if "shapes" in columns:
                for path, some in zip(paths, records.table.column("shapes").to_pylist(), strict=True):
                    shapes[path].update(dict.fromkeys(some))
            if "boxes" in columns:
                for path, flat in zip(paths, records.table.column("boxes").to_pylist(), strict=True):
                    boxes[path].update(dict.fromkeys(tuple(flat[i : i + 4]) for i in range(0, len(flat), 4)))
        return {path: Annotations(tuple(shapes[path]), tuple(boxes[path])) for path in sorted(shapes)}

    def _images(self) -> None:
        annotations = self._annotations()
        looks = look_at_all(
            annotations, self.corpus.image_root, deep=self.deep, workers=self.workers, progress=self.progress
        )
        headers = [look.header for look in looks.values() if not look.problem]
        images = self.result.images
        images.files, images.decoded = len(looks), self.deep
        images.sizes = dict(Counter(f"{h.width} x {h.height}" for h in headers).most_common())
        images.kinds = dict(
            Counter(
                " ".join(filter(None, (h.format, h.mode, f"{h.bits} bit", h.photometric))) for h in headers
            ).most_common()
        )
        images.monochrome1 = sum(h.photometric == "MONOCHROME1" for h in headers)
        if headers:
            seen = "decoded" if self.deep else "with a sound header"
            sizes = ", ".join(f"{size} ({count:,})" for size, count in list(images.sizes.items())[:3])
            more = f" and {len(images.sizes) - 3:,} other sizes" if len(images.sizes) > 3 else ""
            self._add("images", "ok", f"{len(headers):,} {seen}; {sizes}{more}")
        problems = [(self._short(path), look.problem) for path, look in looks.items() if look.problem]
        for problem, paths in _alike(problems):
            accept = ", or damaged: accept to take them as they are" if "damaged inside" in problem else ""
            remedy = (
                f"get the files again from {self.corpus.source}, or set on_error: skip to go on without them{accept}"
            )
            self._add("images broken", "error", f"{len(paths):,}: {problem}", remedy=remedy, items=paths)
        if named := self.corpus.substituted:
            self._add(
                "image endings",
                "note",
                f"{len(named):,} images have another ending than the tables name, and are taken",
                items=[self._short(path) for path in named.values()],
            )
        self._marks(looks)
        self._suspicions(looks)
        if linked := [self._short(path) for path, look in looks.items() if look.linked]:
            self._add(
                "images linked",
                "warning",
                f"{len(linked):,} are reached by a symbolic link out of {self.corpus.image_root}",
                remedy="fine if you made the link; replace it by the files otherwise",
                items=linked,
            )
        self._sizes(looks)
        self._unnamed({os.path.abspath(path) for path in looks})

    def _short(self, path: str) -> str:
        path, root = str(Path(path)), str(self.corpus.image_root.absolute())
        return path.removeprefix(root).lstrip("/\\") if path.startswith(root) else path

    def _marks(self, looks: dict[str, Look]) -> None:
        marks = [(self._short(path), reason) for path, look in looks.items() for reason in sorted(set(look.marks))]
        for reason, paths in _alike(marks):
            self._add(
                "annotations",
                "error",
                f"{len(paths):,} images: {reason}",
                remedy=f"get labels and images of one release from {self.corpus.source}",
                items=paths,
            )

    def _suspicions(self, looks: dict[str, Look]) -> None:
        odd = [(self._short(path), look.suspicion) for path, look in looks.items() if look.suspicion]
        for suspicion, paths in _alike(odd):
            remedy = "look at some; if they are damaged, get them again, or leave them out of the table"
            self._add("images suspicious", "warning", f"{len(paths):,}: {suspicion}", remedy=remedy, items=paths)

    def _sizes(self, looks: dict[str, Look]) -> None:
        try:
            released = _attempt(self.corpus.released_sizes)
        except _Refusal as refusal:
            if refusal.fault:
                self._refused("image sizes", "error", refusal)
            return  # the table's own check has said it
        if not released:
            return
        pairs = {
            path: item
            for records in self.records.values()
            for path, item in zip(
                records.table.column("image").to_pylist(), records.table.column("id").to_pylist(), strict=True
            )
            if item in released and not looks[path].problem
        }
        other = [
            self._short(path)
            for path, item in pairs.items()
            if (looks[path].header.height, looks[path].header.width) != released[item]
        ]
        if not pairs:
            return
        if not other:
            self._add("image sizes", "ok", f"{len(pairs):,} are as the table says")
        elif 2 * len(other) > len(pairs):
            found = f"{len(other):,} of {len(pairs):,} differ from the table: this looks like a resized copy"
            self._add("image sizes", "note", found)
        else:
            found = f"{len(other):,} of {len(pairs):,} differ from the table"
            self._add("image sizes", "warning", found, remedy="get these files again", items=other)

    def _unnamed(self, named: set[str]) -> None:
        below = images_below(self.corpus.root, self.corpus.image_folders)
        for folder, paths in below.items():
            wanted = self.corpus.image_counts.get(folder)
            if wanted is None or self.result.phantom or len(paths) == wanted:
                continue
            difference = wanted - len(paths)
            what = f"{difference:,} are missing" if difference > 0 else f"{-difference:,} too many"
            remedy = f"get them from {self.corpus.source}" if difference > 0 else ""
            self._add(
                f"folder {folder}",
                "warning" if difference > 0 else "note",
                f"{len(paths):,} images: {what}",
                expected=f"{wanted:,}",
                remedy=remedy,
            )
        root = Path(self.corpus.root.absolute())
        files = dict.fromkeys(path for paths in below.values() for path in paths)
        unnamed = []
        for path in files:
            relative = Path(path).relative_to(root)
            names = {relative.stem, relative.name, relative.as_posix()}
            if path not in named and not names & self.left_out:
                unnamed.append(relative.as_posix())
        self.result.images.unnamed = len(unnamed)
        if unnamed and self.records:
            self._add("images unnamed", "note", f"{len(unnamed):,} files that no record names", items=unnamed)

    def _sums(self) -> None:
        again = f"get them again from {self.corpus.source}"
        reports = getattr(self.corpus, "reports_root", None)
        found = False
        for folder in dict.fromkeys(f for f in (self.corpus.root, self.corpus.image_root, reports) if f is not None):
            for sums in verify_sums(folder, self.progress):
                name, found = sums.path.name, True
                if sums.problem:
                    self._add("checksums", "error", f"{name} {sums.problem}", remedy=again)
                if sums.wrong:
                    self._add(
                        "checksums",
                        "error",
                        f"{len(sums.wrong):,} files differ from {name}",
                        remedy=again,
                        items=sums.wrong,
                    )
                if sums.unread:
                    rows = [f"line {number}" for number in sums.unread]
                    self._add("checksums", "warning", f"{len(rows):,} lines of {name} are no checksums", items=rows)
                if sums.absent:
                    text = f"{len(sums.absent):,} files of {name} are not there"
                    self._add("checksums", "note", text, items=sums.absent)
                if sums.right and not sums.wrong:
                    self._add("checksums", "ok", f"{sums.right:,} files are as {name} says")
        if not found and not self.result.phantom:
            self._add("checksums", "note", "no SHA256SUMS here, so bytes that changed and still decode are not seen")

    # ------------------------------------------------------------------ splits

    def _split(self, name: str) -> None:
        task = next(iter(self.records), None)
        default = name == split_names(self.corpus.name)[0]
        if task is None:
            self.result.splits[name] = SplitState(False, default, reason="no records can be read")
            return
        info = describe(self.corpus.name, name)
        try:
            split = _attempt(lambda: self._made(name))
        except _Refusal as refusal:
            self.result.splits[name] = SplitState(False, default, reason=str(refusal))
            # phantoms are often too small for a split, and not every folder needs every split
            small = self.result.phantom and (not default or "too few" in str(refusal))
            level: Level = "note" if info.needs_lists or small else "error" if default else "warning"
            self._refused(f"split {name}", level, refusal)
            return
        self.result.splits[name] = SplitState(
            True,
            default,
            split.counts,
            {part: digest[:12] for part, digest in split.sha256.items()},
            split.verified,
            split.leaks,
        )
        counts = ", ".join(f"{part} {count:,}" for part, count in split.counts.items())
        leaks = "".join(f"; shares {number:,} {what}" for what, number in split.leaks.items())
        verified = "; verified" if split.verified else ""
        self._add(f"split {name}", "note" if split.leaks else "ok", f"{counts}{verified}{leaks}")

    def _made(self, name: str) -> Split:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SplitLeakWarning)
            if self.listing is None:
                self.listing = self.corpus.listing()
            return make_split(self.corpus.name, name, self.listing, lists=self.lists, strict=not self.result.phantom)

    # ------------------------------------------------------------------ what next

    def _next(self) -> None:
        corpus, name = self.corpus, self.corpus.name
        root = shlex.quote(str(corpus.root))
        options = "".join(f" --option {shlex.quote(f'{key}={value}')}" for key, value in self.result.options.items())
        if not corpus.root.is_dir():
            self.result.next = [f"medvlp phantom --layout {name} --root {root}"]
        elif not self.result.ok:
            self.result.next = [f"medvlp doctor {name} {root}{options}"]
        else:
            prepare = f"medvlp prepare --data {name} --root {root} --out CACHE{options}"
            view = f"medvlp view {name} {root} --out VIEW{options}"
            self.result.next = [prepare, view]
            if "pairs" in self.records and self.result.tasks["pairs"].runs:
                module = f"{type(corpus).__name__}DataModule"
                keys = "".join(
                    f" --data.init_args.{key} {shlex.quote(str(value))}" for key, value in self.result.options.items()
                )
                self.result.next.append(
                    f"medvlp fit --model G2D --data {module} --data.init_args.root {root}{keys}"
                    " --data.init_args.task pairs --data.init_args.cache_dir CACHE"
                )


def unreadable(corpus_name: str, title: str, root: Path, error: ConfigError, options: dict[str, str]) -> Diagnosis:
    """The diagnosis of a corpus that cannot even be set up, for example because no edition of it is found."""
    result = Diagnosis(corpus_name, title, root, options)
    result.checks.append(Check("options", "error", " ".join(str(error).split())))
    return result


__all__ = ["PARTIAL", "examine", "unreadable"]
