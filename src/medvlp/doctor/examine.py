"""The checks: folder, tables, records, images, checksums, splits. A broken folder never raises."""

import json
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from medvlp.datasets.corpus import Corpus
from medvlp.datasets.tables import Table
from medvlp.doctor.findings import Case, Diagnosis, Finding, Level, Progress, SplitState, TaskState, refusal
from medvlp.doctor.images import check_images
from medvlp.doctor.sums import check_sums
from medvlp.phantom.truth import MANIFEST
from medvlp.splits import SplitLeakWarning, describe, make_split, split_names

_PARTIAL = MANIFEST + ".partial"  # claims the folder of a phantom while it is being written


def examine(
    corpus: Corpus,
    *,
    options: dict[str, str] | None = None,
    lists: str | Path | None = None,
    deep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a corpus. Nothing that is wrong with the data raises.

    Args:
        corpus: its reader; it is read with ``on_error: skip`` whatever its own setting.
        options: options of the reader, to be shown and put into the commands to type next.
        lists: folder with the authors' list files, for the splits that need them.
        deep: decode every image, draw every mask and verify ``SHA256SUMS``.
        workers: threads for the images; None chooses.
        progress: called with what is being done, how many are done, and how many in all.
    """
    diagnosis = Diagnosis(corpus.name, corpus.title, corpus.root, options or {}, corpus.is_phantom)
    case = Case(corpus.examined(), diagnosis, deep, lists, workers, progress)
    diagnosis.checks.append(_check_folder(corpus))
    if diagnosis.ok:
        for check in (*CHECKS, *corpus.checks):
            diagnosis.checks.extend(check(case))
    diagnosis.next = _next_commands(case)
    return diagnosis


def _check_folder(corpus: Corpus) -> Finding:
    root = corpus.root
    state = "is empty" if root.is_dir() else "is a file, not a folder" if root.exists() else "does not exist"
    try:
        if root.is_dir() and any(root.iterdir()):
            return Finding("folder", "ok", "is there")
    except OSError as error:
        return Finding("folder", "error", f"cannot be listed ({type(error).__name__})", remedy="check its rights")
    return Finding("folder", "error", state, f"the {corpus.title} folder", corpus.remedy)


def check_phantom(case: Case) -> Iterator[Finding]:
    """Check that a phantom is complete and of this layout."""
    root, name = case.corpus.root, case.corpus.name
    again = f"write it again: medvlp phantom {name} --root {shlex.quote(str(root))} --overwrite"
    if (root / _PARTIAL).exists():
        yield Finding("phantom", "error", "was not written to its end", remedy=again)
    elif case.diagnosis.phantom:
        try:
            manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            layout, studies = str(manifest["layout"]), int(manifest["studies"])
            absent = [str(entry) for entry in manifest.get("entries", ()) if not (root / str(entry)).exists()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            yield Finding("phantom", "error", f"{MANIFEST} cannot be read ({type(error).__name__})", remedy=again)
            return
        if layout != name:
            yield Finding("phantom", "error", f"a phantom in the layout of {layout}", name, again)
        elif absent:
            text = f"{len(absent)} of its files or folders are gone"
            yield Finding("phantom", "warning", text, remedy=again, items=tuple(absent))
        else:
            yield Finding("phantom", "ok", f"a phantom of {studies:,} studies, not held to the counts of a release")


def check_tables(case: Case) -> Iterator[Finding]:
    """Check that each released table is there, can be read, and has the rows of a release."""
    for spec in case.corpus.tables:
        name = f"table {spec.name}"
        if case.corpus.has_table(spec.name):
            try:
                yield _row_count(case, name, case.corpus.read_table(spec.name))
            except Exception as error:
                yield refusal(name, "error", error)
        elif spec.required:
            yield Finding(name, "error", "is missing", remedy=f"get it from {case.corpus.remedy}")
        else:
            purpose = f"; it is for {spec.needed_for}" if spec.needed_for else ""
            yield Finding(name, "note", f"is not there{purpose}")


def _row_count(case: Case, name: str, table: Table) -> Finding:
    rows, known = len(table.frame) + len(table.repeated), table.spec.rows
    text = f"{rows:,} rows{''.join(f'; {note}' for note in table.notes)}"
    items = tuple(f"row {row}" for row in table.repeated)
    level: Level = "note" if table.notes else "ok"
    if case.diagnosis.phantom or not known:
        return Finding(name, level, text, items=items)
    if rows in known:
        return Finding(name, level, f"{text} ({known[rows]})", items=items)
    closest = min(known, key=lambda count: abs(count - rows))
    what = f"{closest - rows:,} rows are missing" if rows < closest else f"{rows - closest:,} rows too many"
    text = f"{text}: {what}, or the file is another version"
    expected = f"{' or '.join(f'{count:,} ({release})' for count, release in known.items())} rows"
    level = "error" if rows < min(known) else "warning"
    return Finding(name, level, text, expected, f"get it again from {case.corpus.source}", items)


def check_tasks(case: Case) -> Iterator[Finding]:
    """Check that the records of each task can be read, and list what was dropped for any."""
    corpus, tasks = case.corpus, case.diagnosis.tasks
    absent = [spec.name for spec in corpus.tables if not spec.required and not corpus.has_table(spec.name)]
    for task in corpus.tasks:
        if case.progress is not None:
            case.progress(f"reading records for {task}", 0, 0)
        name, is_default = f"task {task}", task == corpus.tasks[0]
        try:
            records = corpus.records(task)
            kept = len(corpus.after_split(records.table))
        except Exception as error:
            # a missing table that only other tasks need is no fault of the folder
            optional = not is_default and any(table in str(error) for table in absent)
            finding = refusal(name, "note" if optional else "error", error)
            tasks[task] = TaskState(False, reason=finding.found)
            yield finding
            continue
        case.records[task] = records
        if not len(records):
            tasks[task] = TaskState(False, reason="no record is left")
            level: Level = "error" if is_default else "note"
            yield Finding(name, level, "no record is left", remedy="see below what was left out")
            continue
        tasks[task] = TaskState(True, len(records))
        filters = f", {kept:,} with the filters that follow a split" if kept != len(records) else ""
        yield Finding(name, "ok", f"{len(records):,} records{filters}")
        blank = tuple(records.column("id")[records.column("text", "no column") == ""])
        if blank:
            yield Finding(f"{name}: texts", "note", f"{len(blank):,} records have none", items=blank)
    yield from _dropped(case)


def _dropped(case: Case) -> Iterator[Finding]:
    frames = [records.dropped for records in case.records.values()]
    if not frames:
        return
    dropped = pd.concat(frames, ignore_index=True).drop_duplicates(["id", "row", "reason", "broken"])
    case.left_out = set(dropped["id"])
    # one finding for all reasons that differ in numbers alone: "ends at 4032 of 2304 pixels"
    kinds = dropped["reason"].str.replace(r"\d+", "N", regex=True)
    for (broken, kind), rows in dropped.groupby([dropped["broken"], kinds], sort=True):
        reason = kind if len(set(rows["reason"])) > 1 else rows["reason"].iloc[0]
        text = f"{len(rows):,}: {reason}"
        ids = zip(rows["id"], rows["row"], strict=True)
        items = tuple(f"{item or 'no id'}{f' (row {row})' if row >= 0 else ''}" for item, row in ids)
        if broken:
            remedy = f"get the files again from {case.corpus.source}, or set on_error: skip to go on without them"
            yield Finding("records broken", "error", text, remedy=remedy, items=items)
        else:
            yield Finding("records left out", "note", text, items=items)


def check_splits(case: Case) -> Iterator[Finding]:
    """Check which splits can be made, and whether they are the published ones."""
    corpus, states = case.corpus, case.diagnosis.splits
    names = split_names(corpus.name)
    for name in names:
        is_default = name == names[0]
        if not case.records:
            states[name] = SplitState(False, is_default, reason="no records can be read")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SplitLeakWarning)
                strict = not case.diagnosis.phantom
                split = make_split(corpus.name, name, case.listing, lists=case.lists, strict=strict)
        except Exception as error:
            # phantoms are often too small for a split, and not every folder needs every split
            small = case.diagnosis.phantom and (not is_default or "too few" in str(error))
            optional = small or describe(corpus.name, name).needs_lists
            finding = refusal(f"split {name}", "note" if optional else "error" if is_default else "warning", error)
            states[name] = SplitState(False, is_default, reason=finding.found)
            yield finding
            continue
        hashes = {part: digest[:12] for part, digest in split.sha256.items()}
        states[name] = SplitState(True, is_default, split.counts, hashes, split.verified, split.leaks)
        counts = ", ".join(f"{part} {count:,}" for part, count in split.counts.items())
        leaks = "".join(f"; shares {number:,} {what}" for what, number in split.leaks.items())
        verified = "; verified" if split.verified else ""
        yield Finding(f"split {name}", "note" if split.leaks else "ok", f"{counts}{verified}{leaks}")


CHECKS: list[Callable[[Case], Iterator[Finding]]] = [
    check_phantom,
    check_tables,
    check_tasks,
    check_images,
    check_sums,
    check_splits,
]
"""What :func:`examine` runs for every corpus, in this order; those of ``Corpus.checks`` follow."""


def _next_commands(case: Case) -> list[str]:
    corpus, name, options = case.corpus, case.corpus.name, case.diagnosis.options
    root = shlex.quote(str(corpus.root))
    words = "".join(f" --option {shlex.quote(f'{key}={value}')}" for key, value in options.items())
    if not corpus.root.is_dir():
        return [f"medvlp phantom {name} --root {root}"]
    if not case.diagnosis.ok:
        return [f"medvlp doctor {name} --root {root}{words}"]
    commands = [
        f"medvlp prepare {name} --root {root} --out CACHE{words}",
        f"medvlp view {name} --root {root} --out VIEW{words}",
    ]
    if "pairs" in case.records and case.diagnosis.tasks["pairs"].runs:
        keys = "".join(f" --data.init_args.{key} {shlex.quote(str(value))}" for key, value in options.items())
        commands.append(
            f"medvlp fit --model G2D --data {type(corpus).__name__}DataModule --data.init_args.root {root}{keys}"
            " --data.init_args.task pairs --data.init_args.cache_dir CACHE"
        )
    return commands
