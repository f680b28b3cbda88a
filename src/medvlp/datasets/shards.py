"""The work of :mod:`medvlp.prepare`: find the shards of a cache to write, and write them in parallel."""

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from medvlp.errors import DataError, UnreadableItemError
from medvlp.io.cache_format import (
    CACHE_FILE,
    PATH_MARK,
    PreparedImage,
    is_current,
    mask_key,
    read_paths,
    remove_shards,
    source_state,
    versions,
    write_paths,
    write_shard,
)
from medvlp.io.headers import read_header
from medvlp.io.shapes import draw
from medvlp.resizing import ResizeRule, build_resize
from medvlp.store import remove_leftovers

Reader = Callable[[Path], np.ndarray]
"""Decodes a file to grey levels, uint8 (H, W)."""

_SHARD_BYTES = 256 * 2**20  # of pixels; a shard is in memory until it is written, and lost if the process ends
_SHARD_IMAGES = 4096
_CHUNK_BYTES = 8 * 2**20
_CHUNK_IMAGES = 32
_HEADERS = 64

Shapes = tuple[tuple[str, ...], ...]
"""For one image, the lists of shapes that records name."""


class Plan:
    """The images of one cache, and the shards that must be written.

    Args:
        folder: of the cache.
        rule: its resize rule.
        root: of the corpus.
        shapes: the images, by path in ascending order, with the shapes whose masks are requested.
        overwrite: remove the existing cache.
        per_shard: images of a shard; None takes 4096, or as many as fill 256 MiB.

    Attributes:
        todo: numbers of the shards to write.
        kept: number of images in the other shards.
    """

    def __init__(
        self,
        folder: Path,
        rule: ResizeRule,
        root: Path,
        shapes: Mapping[str, Shapes],
        overwrite: bool,
        per_shard: int | None,
    ) -> None:
        self.folder, self.rule = folder, rule
        remove_leftovers(folder)
        earlier = None
        if overwrite:
            (folder / CACHE_FILE).unlink(missing_ok=True)
            remove_shards(folder, 0)
        else:
            earlier = read_paths(folder)
        self.images = dict(shapes)
        if earlier is not None and not set(earlier[0]) <= shapes.keys():
            self.images = {path: shapes.get(path, ()) for path in sorted({*shapes, *earlier[0]})}
        self._paths = list(self.images)
        self.bytes_each = _bytes_each(rule, root, self._paths)
        if earlier is not None and earlier[0] == self._paths and per_shard in (None, earlier[1]):
            self.per_shard = earlier[1]
        else:
            self.per_shard = per_shard or int(min(max(_SHARD_BYTES // self.bytes_each, 1), _SHARD_IMAGES))
            (folder / CACHE_FILE).unlink(missing_ok=True)
            write_paths(folder, self._paths, self.per_shard)
        self.packages = versions()
        self.shards = -(-len(self._paths) // self.per_shard)
        self.todo: list[int] = []
        self.kept = 0
        for number in range(self.shards):
            if is_current(folder, number, root, self.shard(number), self.packages):
                self.kept += len(self.shard(number))
            else:
                self.todo.append(number)
        remove_shards(folder, self.shards)
        if self.todo:  # from here on the cache is incomplete, and says so
            (folder / CACHE_FILE).unlink(missing_ok=True)

    def shard(self, number: int) -> dict[str, Shapes]:
        """Return the images of one shard."""
        start = number * self.per_shard
        return {path: self.images[path] for path in self._paths[start : start + self.per_shard]}

    @property
    def bytes_needed(self) -> int:
        """Estimate of what will be written."""
        images = [shapes for number in self.todo for shapes in self.shard(number).values()]
        return int(self.bytes_each * (len(images) + sum(map(len, images)) / 8))


def _bytes_each(rule: ResizeRule, root: Path, paths: Sequence[str]) -> float:
    """Mean bytes of a prepared image; where the rule keeps the aspect, from some of the files' headers."""
    if rule.square_side is not None:
        return float(rule.square_side**2)
    headers = [read_header(root / p) for p in paths[:: max(len(paths) // _HEADERS, 1)][:_HEADERS]]
    sizes = [(h.height, h.width) for h in headers if h.height and not h.problem]
    areas = {s: rule.image(torch.zeros(1, *s, dtype=torch.uint8))[0].numel() for s in set(sizes)}
    return float(np.mean([areas[s] for s in sizes])) if sizes else 1.0


def _prepare_images(
    root: Path, images: Sequence[tuple[str, Shapes]], rules: Sequence[str], read: Reader
) -> list[list[PreparedImage]]:
    """Prepare images in a worker: decode each once and return one entry per rule."""
    built = [build_resize(name) for name in rules]
    return [_prepare_image(root, path, shapes, built, read) for path, shapes in images]


def _prepare_image(
    root: Path, path: str, shapes: Shapes, rules: Sequence[ResizeRule], read: Reader
) -> list[PreparedImage]:
    file = root / path
    before = source_state(file)
    try:
        digest = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError:  # missing, a folder, no permission: read_image says which
        digest = bytes(16)
    source = PreparedImage(path, *before, digest)
    try:
        pixels = torch.from_numpy(read(file)).unsqueeze(0)
    except UnreadableItemError as error:
        message, reason = (text.replace(str(file), PATH_MARK) for text in (str(error), error.reason))
        return [replace(source, reason=reason, message=message, item_id=error.item_id)] * len(rules)
    if source_state(file) != before:
        raise DataError(f"{file} changed while it was read; prepare the corpus when nothing writes to it")
    size = (pixels.shape[1], pixels.shape[2])
    drawn = {names: _draw(names, size) for names in shapes}
    entries = []
    for rule in rules:
        small, geometry = rule.image(pixels)
        masks = {}
        for names, mask in drawn.items():
            bits = np.zeros((0, 0), bool) if mask is None else rule.mask(mask, geometry)[0].numpy()
            masks[mask_key(names, size, geometry)] = (*bits.shape, np.packbits(bits))
        entries.append(replace(source, pixels=small[0].numpy(), geometry=tuple(geometry), size=size, masks=masks))
    return entries


def _draw(shapes: Sequence[str], size: tuple[int, int]) -> torch.Tensor | None:
    try:
        return torch.from_numpy(draw(shapes, *size)).unsqueeze(0)
    except DataError:  # reading the sample draws it again and raises this error
        return None


class _Chunk(NamedTuple):
    """Some images of a shard that several caches may share."""

    plans: list[Plan]
    number: int
    images: list[tuple[str, Shapes]]
    last: bool


def _chunks(plans: Sequence[Plan]) -> Iterator[_Chunk]:
    """Chunks of images in order; caches with equal shards share them, so that each file is decoded once."""
    groups: list[list[Plan]] = []
    for plan in plans:
        matches = [g for g in groups if (g[0].images, g[0].per_shard) == (plan.images, plan.per_shard)]
        if matches:
            matches[0].append(plan)
        else:
            groups.append([plan])
    for group in groups:
        length = int(min(max(_CHUNK_BYTES // sum(p.bytes_each for p in group), 1), _CHUNK_IMAGES))
        for number in sorted({n for p in group for n in p.todo}):
            writing = [p for p in group if number in p.todo]
            images = list(group[0].shard(number).items())
            for first in range(0, len(images), length):
                last = first + length >= len(images)
                yield _Chunk(writing, number, images[first : first + length], last)


def write(plans: Sequence[Plan], root: Path, read: Reader, workers: int | None, advance: Callable[[int], None]) -> None:
    """Decode with ``read``, resize and write whatever the plans lack; those of equal shards share the decoding.

    ``workers`` is the number of processes: None takes one per core, 1 this process alone. ``advance`` is called with
    the number of further images written.

    Raises:
        DataError: a worker was killed, or a file changed while it was read.
    """
    prepared: list[list[PreparedImage]] = []
    for chunk, entries in _results(_chunks(plans), root, read, workers if any(p.todo for p in plans) else 1):
        prepared += entries
        if chunk.last:
            for plan, images in zip(chunk.plans, zip(*prepared, strict=True), strict=True):
                write_shard(plan.folder, chunk.number, images, plan.packages)
            prepared = []
        advance(len(entries) * len(chunk.plans))


def _results(
    chunks: Iterable[_Chunk], root: Path, read: Reader, workers: int | None
) -> Iterator[tuple[_Chunk, list[list[PreparedImage]]]]:
    """Yield prepared chunks in order."""
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for chunk in chunks:
                yield chunk, _prepare_images(root, chunk.images, [p.rule.name for p in chunk.plans], read)
        finally:
            torch.set_num_threads(threads)
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])  # torch is imported once and not per worker
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
        waiting: deque[tuple[_Chunk, Future[list[list[PreparedImage]]]]] = deque()
        try:
            for chunk in chunks:
                rules = [p.rule.name for p in chunk.plans]
                waiting.append((chunk, pool.submit(_prepare_images, root, chunk.images, rules, read)))
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
