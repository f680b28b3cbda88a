"""The work of :mod:`medvlp.prepare`: find the shards of a cache to write, and write them in parallel."""

import dataclasses
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvlp.errors import DataError, UnreadableItemError
from medvlp.io.cache_format import CACHE_FILE, PATH_MARK, mask_key
from medvlp.io.cache_writer import (
    PreparedImage,
    PreparedMask,
    kept_shard,
    read_paths,
    remove_shards,
    versions,
    write_paths,
    write_shard,
)
from medvlp.io.images import read_header
from medvlp.io.shapes import draw
from medvlp.resizing import ResizeRule, build_resize
from medvlp.store import remove_leftovers

Reader = Callable[[Path], np.ndarray]
"""Makes grey levels, uint8 (H, W), of a file."""

SHARD_BYTES = 256 * 2**20
"""Approximate size of a shard's pixels. A shard is in memory until it is written, and lost if the process ends."""

SHARD_IMAGES = 4096
"""Images of a shard, at most."""

_CHUNK_BYTES = 8 * 2**20
_CHUNK_IMAGES = 32
_HEADERS = 64

Shapes = tuple[tuple[str, ...], ...]
"""For one image, the lists of shapes that records name."""


@dataclasses.dataclass
class Plan:
    """Content of one cache, and the shards that must be written."""

    folder: Path
    rule: ResizeRule
    paths: list[str]
    shapes: Mapping[str, Shapes]
    per_shard: int
    bytes_each: float
    todo: list[int]
    kept: int
    packages: dict[str, str]
    unreadable: dict[str, str]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.paths) // self.per_shard)

    def shard(self, number: int) -> list[str]:
        """Paths of one shard."""
        return self.paths[number * self.per_shard : (number + 1) * self.per_shard]

    @property
    def bytes_needed(self) -> int:
        """Estimate of what will be written."""
        paths = [p for number in self.todo for p in self.shard(number)]
        masks = sum(len(self.shapes.get(p, ())) for p in paths)
        return int(self.bytes_each * (len(paths) + masks / 8))


def _bytes_each(rule: ResizeRule, root: Path, paths: Sequence[str]) -> float:
    """Mean bytes of a prepared image; where the rule keeps the aspect, from some of the files' headers."""
    if rule.square_side is not None:
        return float(rule.square_side**2)
    headers = [read_header(root / p) for p in paths[:: max(len(paths) // _HEADERS, 1)][:_HEADERS]]
    sizes = {(h.height, h.width) for h in headers if h.height and not h.problem}
    areas = {s: rule.image(torch.zeros(1, *s, dtype=torch.uint8))[0].numel() for s in sizes}
    known = [areas[h.height, h.width] for h in headers if (h.height, h.width) in areas]
    return float(np.mean(known)) if known else 1.0


def make_plan(
    folder: Path, rule: ResizeRule, root: Path, shapes: Mapping[str, Shapes], overwrite: bool, per_shard: int | None
) -> Plan:
    """Record what a cache will hold, and find the shards that must be written.

    Args:
        folder: of the cache.
        rule: its resize rule.
        root: of the corpus.
        shapes: the images, by path in ascending order, with the shapes whose masks are requested.
        overwrite: remove the existing cache.
        per_shard: images of a shard; None takes as many as the limits allow.
    """
    remove_leftovers(folder)
    earlier = None
    if overwrite:
        (folder / CACHE_FILE).unlink(missing_ok=True)
        remove_shards(folder, 0)
    else:
        earlier = read_paths(folder)
    paths = list(shapes)
    if earlier is not None and not set(earlier[0]) <= shapes.keys():
        paths = sorted({*paths, *earlier[0]})
    bytes_each = _bytes_each(rule, root, paths)
    if earlier is not None and earlier[0] == paths and per_shard in (None, earlier[1]):
        per_shard = earlier[1]
    else:
        per_shard = per_shard or int(min(max(SHARD_BYTES // bytes_each, 1), SHARD_IMAGES))
        (folder / CACHE_FILE).unlink(missing_ok=True)
        write_paths(folder, paths, per_shard)
    plan = Plan(folder, rule, paths, shapes, per_shard, bytes_each, [], 0, versions(), {})
    for number in range(plan.shards):
        part = plan.shard(number)
        kept = kept_shard(folder, number, root, part, [shapes.get(p, ()) for p in part], plan.packages)
        if kept is None:
            plan.todo.append(number)
        else:
            plan.kept += len(part)
            plan.unreadable.update(kept)
    remove_shards(folder, plan.shards)
    if plan.todo:  # from here on the cache is incomplete, and says so
        (folder / CACHE_FILE).unlink(missing_ok=True)
    return plan


def require_room(out: Path, plans: Sequence[Plan]) -> None:
    """Raise unless the disk has room for what will be written.

    Raises:
        DataError: it has not; the message holds both numbers.
    """
    needed = int(1.02 * sum(p.bytes_needed for p in plans)) + 2**20
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"the cache needs about {needed / 1e9:.2f} GB and {out} has {free / 1e9:.2f} GB free; choose a smaller size"
            " or another --out"
        )


# ---------------------------------------------------------------------- work


def _prepare_images(
    root: Path, images: Sequence[tuple[str, Shapes]], rules: Sequence[str], read: Reader
) -> list[list[PreparedImage]]:
    """Prepare images in a worker: decode each once and return one entry per rule."""
    built = [build_resize(name) for name in rules]
    return [_prepare_image(root, path, shapes, built, read) for path, shapes in images]


def _stat(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _prepare_image(
    root: Path, path: str, shapes: Shapes, rules: Sequence[ResizeRule], read: Reader
) -> list[PreparedImage]:
    file = root / path
    before = _stat(file)
    try:
        digest = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError:  # missing, a folder, no permission: read_image says which
        digest = bytes(16)
    source = PreparedImage(path, *before, digest)
    try:
        pixels = torch.from_numpy(read(file)).unsqueeze(0)
    except UnreadableItemError as error:
        here = str(file)
        message, reason = str(error).replace(here, PATH_MARK), error.reason.replace(here, PATH_MARK)
        return [dataclasses.replace(source, reason=reason, message=message, item_id=error.item_id)] * len(rules)
    if _stat(file) != before:
        raise DataError(f"{file} changed while it was read; prepare the corpus when nothing writes to it")
    size = (pixels.shape[1], pixels.shape[2])
    drawn = [(s, _draw(s, size)) for s in shapes]
    entries = []
    for rule in rules:
        small, geometry = rule.image(pixels)
        masks = []
        for names, mask in drawn:
            key = mask_key(names, size, geometry)
            if mask is None:
                masks.append(PreparedMask(key, 0, 0, np.zeros(0, dtype=np.uint8)))
            else:
                bits = rule.mask(mask, geometry)[0].numpy()
                masks.append(PreparedMask(key, bits.shape[0], bits.shape[1], np.packbits(bits)))
        entries.append(
            dataclasses.replace(
                source, pixels=small[0].numpy(), geometry=tuple(geometry), size=size, masks=tuple(masks)
            )
        )
    return entries


def _draw(shapes: Sequence[str], size: tuple[int, int]) -> torch.Tensor | None:
    try:
        return torch.from_numpy(draw(shapes, *size)).unsqueeze(0)
    except DataError:  # reading the sample draws it again and raises this error
        return None


@dataclasses.dataclass(frozen=True)
class _Job:
    number: int
    images: list[tuple[str, Shapes]]
    plans: list[Plan]
    last: bool


def _jobs(plans: Sequence[Plan]) -> Iterator[_Job]:
    """Chunks of images in order; caches with equal shards share them, so that each file is decoded once."""
    groups: list[list[Plan]] = []
    for plan in plans:
        matches = [g for g in groups if g[0].paths == plan.paths and g[0].per_shard == plan.per_shard]
        if matches:
            matches[0].append(plan)
        else:
            groups.append([plan])
    for group in groups:
        length = int(min(max(_CHUNK_BYTES // sum(p.bytes_each for p in group), 1), _CHUNK_IMAGES))
        for number in sorted({n for p in group for n in p.todo}):
            requested = [p for p in group if number in set(p.todo)]
            part = [(path, group[0].shapes.get(path, ())) for path in group[0].shard(number)]
            for first in range(0, len(part), length):
                yield _Job(number, part[first : first + length], requested, first + length >= len(part))


def write(plans: Sequence[Plan], root: Path, read: Reader, workers: int | None, advance: Callable[[int], None]) -> None:
    """Decode, resize and write whatever the plans lack.

    Args:
        plans: of the caches; those of equal shards share the decoding.
        root: of the corpus.
        read: makes grey levels of a file; :func:`medvlp.io.images.read_image` with its settings.
        workers: processes; None takes one per core, 1 this process alone.
        advance: called with the number of further images written.

    Raises:
        DataError: a worker was ended, or a file changed while it was read.
    """
    pending: dict[Path, list[PreparedImage]] = {}
    for job, images in _results(_jobs(plans), root, read, workers, sum(len(p.todo) for p in plans)):
        for column, plan in enumerate(job.plans):
            pending.setdefault(plan.folder, []).extend(entries[column] for entries in images)
            if job.last:
                plan.unreadable.update(write_shard(plan.folder, job.number, pending.pop(plan.folder), plan.packages))
        advance(len(images) * len(job.plans))


def _results(
    jobs: Iterable[_Job], root: Path, read: Reader, workers: int | None, shards: int
) -> Iterator[tuple[_Job, list[list[PreparedImage]]]]:
    """Yield finished jobs in order."""
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count == 1 or not shards:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                yield job, _prepare_images(root, job.images, [p.rule.name for p in job.plans], read)
        finally:
            torch.set_num_threads(threads)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])  # torch is imported once and not per worker
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
        waiting: deque[tuple[_Job, Future[list[list[PreparedImage]]]]] = deque()
        try:
            for job in jobs:
                rules = [p.rule.name for p in job.plans]
                waiting.append((job, pool.submit(_prepare_images, root, job.images, rules, read)))
                if len(waiting) > 3 * count:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, most likely for lack of memory; run the command again with fewer"
                " --workers: finished shards are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker would wait forever if the main process was killed
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
