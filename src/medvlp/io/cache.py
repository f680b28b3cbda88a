"""Prepared pixels: images after their deterministic first step (decode, grey levels, resize), read in microseconds.

A cache is a folder ``OUT/CORPUS/INTENSITY-RULE`` that :mod:`medvlp.prepare` writes:

* ``shard-00000.bin``: uint8 pixels of the images, one after the other, without any header;
* ``shard-00000.arrow``: the shard's index, one row per image (``INDEX_SCHEMA`` of :mod:`medvlp.io.cache_format`); its
  metadata hold size and SHA-256 of the ``.bin`` files. It is written last, so a shard is complete or absent;
* ``masks-00000.bin``, ``masks-00000.arrow``: bit-packed masks of the shard's images (``MASK_SCHEMA``), if any;
* ``paths.arrow``: the images of the whole cache, in the order of their paths;
* ``skipped.csv``: what could not be prepared;
* ``cache.json``: what the cache is and the size and SHA-256 of every file, written at the very end.

Indexes are memory-mapped and pixels are read with ``pread``. So no Python object per image exists that forked loader
workers would copy, and a process does not collect pages of a cache that may be larger than its memory: with mapped
pixels its resident size would grow towards the size of the cache within the first epoch. Reading a short file is an
error here, where a mapped one would end the process.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medvlp.errors import DataError, UnreadableItemError
from medvlp.io.cache_format import (
    CACHE_FILE,
    FORMAT,
    INDEX_SCHEMA,
    MASK_SCHEMA,
    PATH_MARK,
    PATHS_FILE,
    cache_folder,
    changed_sources,
    mask_key,
    numbers,
    prepare_command,
    read_description,
    read_table,
    relative_paths,
)
from medvlp.store import file_sha256

__all__ = ["PixelCache", "verify"]

_MAX_OPEN = 64


@dataclass
class _Shard:
    """A shard's index, its numbers as views of the file."""

    table: pa.Table
    offset: np.ndarray
    height: np.ndarray
    width: np.ndarray
    geometry: np.ndarray  # (n, 10)
    source_height: np.ndarray
    source_width: np.ndarray

    @classmethod
    def open(cls, folder: Path, number: int, images: int) -> "_Shard":
        table = read_table(folder / f"shard-{number:05d}.arrow", INDEX_SCHEMA)
        if len(table) != images:
            raise DataError(f"the index of shard {number} in {folder} is not the one of {CACHE_FILE}; prepare it again")
        names = ("offset", "height", "width", "geometry", "source_height", "source_width")
        columns = {name: numbers(table, name) for name in names}
        columns["geometry"] = columns["geometry"].reshape(-1, 10)
        if any((columns[name] < 0).any() for name in ("offset", "height", "width")):
            raise DataError(f"the index of shard {number} in {folder} is damaged; prepare it again")
        return cls(table, **columns)


class PixelCache:
    """Prepared images and masks of one corpus, intensity rule and resize rule; made by :meth:`open`.

    Several processes may read one cache. A pickled cache holds only its settings and reopens its files.
    """

    def __init__(self, folder: Path, root: Path, command: str, description: dict[str, Any], check: bool) -> None:
        self.folder = folder
        self.root = root
        self.description = description
        self._command = command
        self._check = check
        counts = [s["images"] for s in description["shards"]]
        self._starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self._reset()

    def _reset(self) -> None:
        self._shards: dict[int, _Shard] = {}
        self._files: dict[str, Any] = {}
        self._masks: tuple[np.ndarray, ...] | None = None
        self._all_paths: pa.ChunkedArray | None = None

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_shards", "_files", "_masks", "_all_paths")
        return {k: v for k, v in self.__dict__.items() if k not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @classmethod
    def open(
        cls,
        out: str | Path,
        corpus: str,
        intensity: str,
        rule: str,
        root: str | Path,
        *,
        options: Mapping[str, Any] | None = None,
        check: bool = True,
    ) -> "PixelCache":
        """Open a cache.

        Args:
            out: folder that ``medvlp prepare --out`` wrote to.
            corpus: layout name of the corpus.
            intensity: a key of :data:`medvlp.io.images.INTENSITIES`.
            rule: name of a resize rule, such as "square:256".
            root: folder of the corpus now; it may have been moved since.
            options: of the corpus, for the command in messages.
            check: let :meth:`positions` compare size and time of the source files with those that were prepared.

        Raises:
            DataError: the cache is missing, incomplete, damaged or of another format. The message holds the
                command that makes it.
        """
        folder = cache_folder(out, corpus, intensity, rule)
        command = prepare_command(corpus, root, out, rule, intensity, options)
        try:
            description = read_description(folder)
        except FileNotFoundError as error:
            state = "is incomplete" if (folder / PATHS_FILE).is_file() else "does not exist"
            raise DataError(f"the cache {folder} {state}; run: {command}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{folder / CACHE_FILE} cannot be read; run: {command} --overwrite") from error
        expected = {"format": FORMAT, "corpus": corpus, "intensity": intensity, "rule": rule}
        for key, value in expected.items():
            if description.get(key) != value:
                found = description.get(key)
                raise DataError(f"the cache {folder} has {key} {found!r} and not {value!r}; run: {command} --overwrite")
        for name, entry in description["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise DataError(f"{path} is missing or has another size than {CACHE_FILE} says; run: {command}")
        return cls(folder, Path(root), command, description, check)

    @staticmethod
    def exists(out: str | Path, corpus: str, intensity: str, rule: str) -> bool:
        """Whether such a cache exists, complete or not."""
        folder = cache_folder(out, corpus, intensity, rule)
        return (folder / CACHE_FILE).is_file() or (folder / PATHS_FILE).is_file()

    @property
    def intensity(self) -> str:
        """The intensity rule that the images were decoded with."""
        return str(self.description["intensity"])

    @property
    def rule(self) -> str:
        """Name of the rule that the images were resized with."""
        return str(self.description["rule"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    # ------------------------------------------------------------------ images

    def _shard(self, number: int) -> _Shard:
        if number not in self._shards:
            images = self.description["shards"][number]["images"]
            self._shards[number] = _Shard.open(self.folder, number, images)
        return self._shards[number]

    def _place(self, position: int) -> tuple[int, _Shard, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside a cache of {len(self)} images")
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return number, self._shard(number), position - int(self._starts[number])

    def _column(self, name: str) -> pa.ChunkedArray:
        columns = [self._shard(k).table.column(name) for k in range(len(self.description["shards"]))]
        chunks = [chunk for column in columns for chunk in column.chunks]
        return pa.chunked_array(chunks, type=INDEX_SCHEMA.field(name).type)

    def positions(self, paths: Sequence[str]) -> np.ndarray:
        """Look up the positions of images.

        Args:
            paths: N image files, as a record table of the corpus names them.

        Returns:
            int64 (N,).

        Raises:
            DataError: some images are not in the cache, or their files have changed since (unless ``check`` is off).
        """
        relative = relative_paths(paths, self.root)
        if self._all_paths is None:
            self._all_paths = self._column("path")
        index = pc.index_in(relative, value_set=self._all_paths)
        if index.null_count:
            first = relative.filter(index.is_null())[0].as_py()
            raise DataError(
                f"{index.null_count} of {len(relative)} images are not in the cache {self.folder}, the first is"
                f" {first}; run: {self._command}"
            )
        result: np.ndarray = index.to_numpy(zero_copy_only=False).astype(np.int64)
        if self._check:
            self.check_sources(result)
        return result

    def read(self, position: int) -> tuple[np.ndarray, tuple[int, ...], tuple[int, int]]:
        """Read one image.

        Args:
            position: one of :meth:`positions`.

        Returns:
            The prepared image, uint8 (h, w), a copy that may be written to; what the resize did (the ten numbers of a
            :class:`medvlp.resizing.Geometry`); and (H, W) of the decoded file.

        Raises:
            UnreadableItemError: the file could not be read when the cache was made; the recorded error.
            DataError: the cache is damaged.
        """
        number, shard, row = self._place(position)
        pixels = np.empty((shard.height[row], shard.width[row]), dtype=np.uint8)
        if not pixels.size:
            raise self._unreadable(shard, row)
        self._fill(f"shard-{number:05d}.bin", int(shard.offset[row]), pixels)
        size = int(shard.source_height[row]), int(shard.source_width[row])
        return pixels, tuple(shard.geometry[row].tolist()), size

    def _unreadable(self, shard: _Shard, row: int) -> UnreadableItemError:
        path, reason, message, item = (
            shard.table.column(name)[row].as_py() for name in ("path", "reason", "message", "item_id")
        )
        here = str(self.root / path)
        message, reason = message.replace(PATH_MARK, here), reason.replace(PATH_MARK, here)
        return UnreadableItemError(message, item_id=item, reason=reason)

    def _fill(self, name: str, offset: int, target: np.ndarray) -> None:
        file = self._files.get(name)
        if file is None:
            if len(self._files) >= _MAX_OPEN:  # closed when no thread reads from it any more
                self._files.pop(next(iter(self._files)), None)
            try:
                file = (self.folder / name).open("rb", buffering=0)
            except OSError as error:
                raise DataError(f"{self.folder / name} cannot be opened; run: {self._command}") from error
            if os.fstat(file.fileno()).st_size != self.description["files"][name]["bytes"]:
                raise DataError(f"{self.folder / name} was replaced after the cache was opened; start again")
            self._files[name] = file
        view = target.data.cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
            if not count:
                raise DataError(f"{self.folder / name} is cut short; run: {self._command} --overwrite")
            done += count

    # ------------------------------------------------------------------ masks

    def mask(self, shapes: Sequence[str], size: tuple[int, int], geometry: Sequence[int]) -> np.ndarray | None:
        """Read the prepared union of shapes.

        Args:
            shapes: strings of :mod:`medvlp.io.shapes`.
            size: (H, W) of the decoded file.
            geometry: what the resize did to the image, as :meth:`read` returns it.

        Returns:
            bool (h, w), writable, of the size of the prepared image, or None if it is not stored.

        Raises:
            DataError: the cache is damaged.
        """
        if not shapes:
            return np.zeros((geometry[9], geometry[8]), dtype=bool)
        if self._masks is None:
            self._masks = self._open_masks()
        keys, shard, offset, height, width = self._masks
        key = np.array(mask_key(shapes, size, geometry), dtype=keys.dtype)
        at = int(np.searchsorted(keys, key))
        if at == len(keys) or keys[at] != key or not height[at]:
            return None
        h, w = int(height[at]), int(width[at])
        packed = np.empty((h * w + 7) // 8, dtype=np.uint8)
        self._fill(f"masks-{shard[at]:05d}.bin", int(offset[at]), packed)
        return np.unpackbits(packed, count=h * w).view(bool).reshape(h, w)

    def _open_masks(self) -> tuple[np.ndarray, ...]:
        shards = [k for k, s in enumerate(self.description["shards"]) if s["masks"]]
        tables = [read_table(self.folder / f"masks-{k:05d}.arrow", MASK_SCHEMA) for k in shards]
        shard = np.repeat(np.array(shards, dtype=np.int64), [len(t) for t in tables])
        table = pa.concat_tables(tables).combine_chunks() if tables else MASK_SCHEMA.empty_table()
        keys = np.array(table.column("key").to_pylist(), dtype="S16")
        order = np.argsort(keys, kind="stable")
        columns = [table.column(name).to_numpy() for name in ("offset", "height", "width")]
        return keys[order], shard[order], columns[0][order], columns[1][order], columns[2][order]

    # ------------------------------------------------------------------ checks

    def check_sources(self, positions: np.ndarray | None = None) -> None:
        """Compare size and time of source files with those that were prepared; files that are gone do not count.

        Args:
            positions: int64 (N,), which images; None for all.

        Raises:
            DataError: a file has changed; the message counts them and names the first.
        """
        requested = np.arange(len(self)) if positions is None else np.unique(positions)
        rows = {
            name: self._column(name).take(pa.array(requested)) for name in ("path", "source_bytes", "source_mtime_ns")
        }
        changed = changed_sources(
            self.root, rows["path"], rows["source_bytes"].to_numpy(), rows["source_mtime_ns"].to_numpy()
        )
        if len(changed):
            first = rows["path"][int(changed[0])].as_py()
            raise DataError(
                f"{len(changed)} of {len(requested)} images changed after they were prepared, the first is"
                f" {self.root / first}; run: {self._command}"
            )


def verify(folder: str | Path) -> list[str]:
    """Check every byte of a cache.

    Args:
        folder: OUT/CORPUS/INTENSITY-RULE.

    Returns:
        What is wrong, one line each; empty if all is well.
    """
    folder = Path(folder)
    try:
        description = read_description(folder)
    except (OSError, ValueError, RecursionError):
        return [f"{folder / CACHE_FILE} is missing or broken"]
    if description.get("format") != FORMAT:
        return [f"{folder} is of format {description.get('format')}, not {FORMAT}"]
    problems = []
    for name, entry in description["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif file_sha256(path) != entry["sha256"]:
            problems.append(f"{name} does not have its SHA-256: its bytes were changed")
    listed = {*description["files"], CACHE_FILE}
    problems += [
        f"{p.name} is not listed in {CACHE_FILE}" for p in sorted(folder.glob("*-*.*")) if p.name not in listed
    ]
    if not problems:
        try:
            problems += _inconsistent(folder, description)
        except DataError as error:
            problems.append(str(error))
    return problems


def _inconsistent(folder: Path, description: dict[str, Any]) -> Iterator[str]:
    previous = None
    paths: list[pa.Array] = []
    for number, shard in enumerate(description["shards"]):
        stem = f"{number:05d}"
        table = read_table(folder / f"shard-{stem}.arrow", INDEX_SCHEMA)
        if len(table) != shard["images"]:
            yield f"shard-{stem}.arrow lists {len(table)} images instead of {shard['images']}"
            continue
        h, w, offset = (numbers(table, n).astype(np.int64) for n in ("height", "width", "offset"))
        size = (folder / f"shard-{stem}.bin").stat().st_size
        ends = np.cumsum(h * w)
        if not np.array_equal(offset, ends - h * w) or (len(ends) and int(ends[-1]) != size):
            yield f"shard-{stem}.arrow: offsets and sizes do not fill shard-{stem}.bin"
        reasons = table.column("reason").to_numpy()
        if ((h == 0) != (reasons != "")).any():
            yield f"shard-{stem}.arrow: images without pixels and without a reason, or with both"
        names = table.column("path").to_pylist()
        if names != sorted(set(names)) or (previous is not None and names and names[0] <= previous):
            yield f"shard-{stem}.arrow: paths are not in ascending order"
        previous = names[-1] if names else previous
        paths += table.column("path").chunks
        if shard["masks"]:
            masks = read_table(folder / f"masks-{stem}.arrow", MASK_SCHEMA)
            length = (numbers(masks, "height").astype(np.int64) * numbers(masks, "width") + 7) // 8
            ends = np.cumsum(length)
            if len(masks) != shard["masks"] or not np.array_equal(numbers(masks, "offset"), ends - length):
                yield f"masks-{stem}.arrow: offsets do not follow from the sizes"
            elif len(ends) and int(ends[-1]) != (folder / f"masks-{stem}.bin").stat().st_size:
                yield f"masks-{stem}.arrow: offsets and sizes do not fill masks-{stem}.bin"
    listed = read_table(folder / PATHS_FILE).column("path")
    if pa.chunked_array(paths, type=pa.large_string()) != listed:
        yield f"{PATHS_FILE} and the shards list different images"
