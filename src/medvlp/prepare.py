"""Decode and resize a corpus once: ``medvlp prepare``, which writes what :mod:`medvlp.io.cache` reads.

The result depends on the files alone, not on the number of processes nor on how often the work was interrupted. Shards
that are complete, from unchanged files and by the same versions of the packages are kept when the command is given
again; all others are written again. Images that cannot be read are entries that name the reason.
"""

import argparse
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from medvlp.arguments import add_corpus_arguments, settle_corpus_arguments
from medvlp.console import progress_bar
from medvlp.datasets import CORPORA
from medvlp.datasets.base import dropped_by_reason
from medvlp.datasets.corpus import TASKS, Corpus, Records, Task
from medvlp.datasets.options import OPTION_HELP, corpus_from_words
from medvlp.datasets.shards import Plan, Shapes, write
from medvlp.errors import ConfigError, DataError
from medvlp.io.cache import verify
from medvlp.io.cache_format import cache_folder, finish, relative_paths
from medvlp.io.images import INTENSITIES, Damaged, check_reading, read_image, reading_name
from medvlp.resizing import build_resize
from medvlp.store import locked
from medvlp.transforms import build_transform


@dataclass(frozen=True)
class PreparedFolder:
    """A cache that :func:`prepare` completed; ``kept`` counts images in shards that were kept.

    ``unreadable`` holds path and reason of the images that cannot be read, which ``images`` counts too.
    """

    folder: Path
    rule: str
    images: int
    kept: int
    masks: int
    bytes: int
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PrepareResult:
    """The caches, one per resize rule, and what was skipped: "record" or "image", its id or path, the reason."""

    folders: tuple[PreparedFolder, ...]
    skipped: tuple[tuple[str, str, str], ...]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of skipped records and images by reason."""
        return dict(Counter(reason for _, _, reason in self.skipped).most_common())


def rules_of(transform: str, size: int) -> list[str]:
    """Return the resize rules that a transform needs in training and evaluation; usually one."""
    return list(dict.fromkeys(build_transform(transform, size, train).resize.name for train in (True, False)))


def prepare(
    corpus: Corpus,
    out: str | Path,
    *,
    transform: str = "g2d_paper",
    size: int = 224,
    resize: str | None = None,
    intensity: str = "standard",
    damaged: Damaged = "refuse",
    task: Task | None = None,
    workers: int | None = None,
    progress: bool = False,
    overwrite: bool = False,
    tokenizer: Any = None,
    max_length: int | None = None,
    images_per_shard: int | None = None,
) -> PrepareResult:
    """Decode and resize all images of a corpus, and draw their masks.

    An existing cache is completed: images of earlier calls (for another task, say) stay in it.

    Args:
        corpus: the corpus, not yet read. With ``on_error: raise`` its first broken record is an error.
        out: folder of the caches.
        transform: prepare for this recipe of :mod:`medvlp.transforms`, in training and evaluation.
        size: side of the images that the model sees, in pixels.
        resize: a resize rule instead of a transform, such as "square:256".
        intensity: a key of :data:`medvlp.io.images.INTENSITIES`.
        damaged: "refuse" images whose decoder warns of damage, or "accept" them, in a cache of their own.
        task: whose records name the images; None takes every image.
        workers: processes, each with one thread; None takes one per core. 1 works in this process. With more a script
            must call this under ``if __name__ == "__main__":``.
        progress: show a bar on the terminal.
        overwrite: replace an existing cache.
        tokenizer: ignored, with a warning: texts are tokenised while they are loaded.
        max_length: ignored likewise.
        images_per_shard: see :class:`medvlp.datasets.shards.Plan`.

    Raises:
        DataError: the corpus is not readable, the disk has too little room, another process prepares the same cache,
            or a file changed while it was read.
        ConfigError: an unknown transform, rule, intensity or task.
    """
    start = time.monotonic()
    if tokenizer is not None or max_length is not None:
        warnings.warn("tokenizer and max_length are ignored: texts are tokenised while they are loaded", stacklevel=2)
    check_reading(intensity, damaged)
    reading = reading_name(intensity, damaged)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; give at least 1")
    rules = [build_resize(name) for name in ([resize] if resize is not None else rules_of(transform, size))]
    records = corpus.records(task)
    if not len(records):
        raise DataError(f"{corpus.root} has no records to prepare; {dropped_by_reason(records.dropped)}")
    shapes = _images(records, corpus.root)
    identifiers, reasons = (records.dropped[name].astype(str) for name in ("id", "reason"))
    dropped = [("record", *pair) for pair in zip(identifiers, reasons, strict=True)]
    with ExitStack() as stack:
        plans = []
        for rule in rules:
            folder = cache_folder(out, corpus.name, reading, rule.name)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock", partial(_refuse, folder), poll=0))
            plans.append(Plan(folder, rule, corpus.root, shapes, overwrite, images_per_shard))
        _require_room(Path(out), plans)
        with progress_bar("preparing images", sum(len(p.images) for p in plans), show=progress) as update:
            update(advance=sum(p.kept for p in plans))
            reader = partial(read_image, intensity=intensity, damaged=damaged)
            write(plans, corpus.root, reader, workers, lambda count: update(advance=count))
        folders = []
        for plan in plans:
            description = {"corpus": corpus.name, "intensity": reading, "rule": plan.rule.name}
            content, unreadable = finish(plan.folder, plan.shards, description | {"packages": plan.packages}, dropped)
            images, masks, size = (content[key] for key in ("images", "masks", "bytes"))
            prepared = PreparedFolder(plan.folder, plan.rule.name, images, plan.kept, masks, size, tuple(unreadable))
            folders.append(prepared)
    images = sorted({pair for folder in folders for pair in folder.unreadable})
    skipped = (*dropped, *(("image", *pair) for pair in images))
    return PrepareResult(tuple(folders), skipped, time.monotonic() - start)


def _refuse(folder: Path) -> None:
    raise DataError(f"another process is preparing {folder}; wait for it to end")


def _images(records: Records, root: Path) -> dict[str, Shapes]:
    """Each image of the records, in the order of the paths, with the lists of shapes on it."""
    paths = relative_paths(records.table.column("image").to_pylist(), root)
    lists: dict[str, dict[tuple[str, ...], None]] = {path: {} for path in sorted(set(paths))}
    if "shapes" in records.table.column_names:
        for path, shapes in zip(paths, records.table.column("shapes").to_pylist(), strict=True):
            if shapes:
                lists[path][tuple(shapes)] = None
    return {path: tuple(unique) for path, unique in lists.items()}


def _require_room(out: Path, plans: Sequence[Plan]) -> None:
    needed = int(1.02 * sum(p.bytes_needed for p in plans)) + 2**20
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"the cache needs about {needed / 1e9:.2f} GB and {out} has {free / 1e9:.2f} GB free; choose a smaller size"
            " or another --out"
        )


# ---------------------------------------------------------------------- command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp prepare``."""
    add_corpus_arguments(parser, CORPORA)
    parser.add_argument("--out", type=Path, required=True, help="folder of the caches; data.cache_dir of a run")
    parser.add_argument("--transform", default="g2d_paper", help="recipe to prepare for (default: g2d_paper)")
    parser.add_argument("--size", type=int, default=224, help="image side that the model sees (default: 224)")
    parser.add_argument("--resize", metavar="RULE", help="a resize rule such as square:256, instead of a transform")
    parser.add_argument("--intensity", default="standard", choices=list(INTENSITIES), metavar="NAME")
    parser.add_argument(
        "--damaged",
        default="refuse",
        choices=get_args(Damaged),
        help="images whose decoder warns of damage: list them as unreadable, or take their pixels (default: refuse)",
    )
    parser.add_argument("--task", choices=TASKS, help="whose records name the images (default: every image)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    for name in ("--tokenizer", "--max-length"):
        parser.add_argument(name, help="ignored: texts are tokenised while they are loaded")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=OPTION_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing cache")
    parser.add_argument("--verify", action="store_true", help="only check every byte of the cache that is there")


def run(args: argparse.Namespace) -> int:
    """Run ``medvlp prepare``; the exit status is 1 if ``--verify`` found a damaged cache."""
    settle_corpus_arguments(args, "prepare")
    if args.verify:
        return _verify(args)
    corpus = corpus_from_words(args.dataset, args.root, args.option, on_error="skip")
    options = ("transform", "size", "resize", "intensity", "damaged", "task", "workers", "overwrite", "tokenizer")
    settings = {name: getattr(args, name) for name in (*options, "max_length")}
    result = prepare(corpus, args.out, progress=True, **settings)
    for folder in result.folders:
        print(
            f"{folder.folder}: {folder.images} images ({folder.kept} were there, {len(folder.unreadable)} unreadable),"
            f" {folder.masks} masks, {folder.bytes / 1e6:.1f} MB"
        )
    for reason, count in result.counts.items():
        print(f"skipped: {count} x {reason}")
    if result.skipped:
        print(f"listed in {result.folders[0].folder / 'skipped.csv'}")
    print(f"{result.seconds:.1f} s")
    return 0


def _verify(args: argparse.Namespace) -> int:
    names = [args.resize] if args.resize is not None else rules_of(args.transform, args.size)
    reading = reading_name(args.intensity, args.damaged)
    folders = [cache_folder(args.out, args.dataset, reading, name) for name in names]
    problems = [f"{folder}: {problem}" for folder in folders for problem in verify(folder)]
    for problem in problems:
        print(problem)
    if problems:
        print("repair with the same command and --overwrite instead of --verify")
        return 1
    for folder in folders:
        print(f"{folder}: every byte is as it was written")
    return 0
