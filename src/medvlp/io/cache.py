"""Prepared pixels: images after their deterministic first step (decode, grey levels, resize), read in microseconds.

:mod:`medvlp.io.cache_format` describes the files, which :mod:`medvlp.prepare` writes. Indexes are memory-mapped and
pixels are read with ``pread``. So no Python object per image exists that forked loader workers would copy, and a
process does not collect pages of a cache that may be larger than its memory: with mapped pixels its resident size
would grow towards the size of the cache within the first epoch. Reading a short file is an error here, where a mapped
one would end the process.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
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
    shard_files,
)
from medvlp.store import file_sha256

_MAX_OPEN = 64


class PixelCache:
    """Prepared images and masks of one corpus, intensity rule and resize rule; made by :meth:`open`.

    Several processes may read one cache. A pickled cache holds only its settings and reopens its files.

    Attributes:
        intensity: the intensity rule that the images were decoded with.
        rule: name of the rule that the images were resized with.
    """

    def __init__(self, folder: Path, root: Path, command: str, description: dict[str, Any]) -> None:
        self.folder = folder
        self.root = root
        self.description = description
        self.intensity = str(description["intensity"])
        self.rule = str(description["rule"])
        self._command = command
        self._starts = np.cumsum([0, *(shard["images"] for shard in description["shards"])], dtype=np.int64)
        self._files: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.root, self._command, self.description)

    @classmethod
    def open(cls, out: str | Path, corpus: str, intensity: str, rule: str, root: str | Path) -> "PixelCache":
        """Open the cache of a corpus, intensity rule and resize rule below ``out``.

        ``root`` is the folder of the corpus now; it may have been moved since.

        Raises:
            DataError: the cache is missing, incomplete, damaged or of another format. The message holds the
                command that writes it.
        """
        folder = cache_folder(out, corpus, intensity, rule)
        command = prepare_command(corpus, root, out, rule, intensity)
        try:
            description = read_description(folder)
        except FileNotFoundError as error:
            state = "is incomplete" if (folder / PATHS_FILE).is_file() else "does not exist"
            raise DataError(f"the cache {folder} {state}; run: {command}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{folder / CACHE_FILE} cannot be read; run: {command} --overwrite") from error
        expected = {"format": FORMAT, "corpus": corpus, "intensity": intensity, "rule": rule}
        for key, value in expected.items():
            if (stored := description.get(key)) != value:
                raise DataError(
                    f"the cache {folder} has {key} {stored!r} and not {value!r}; run: {command} --overwrite"
                )
        for name, entry in description["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise DataError(f"{path} is missing or has another size than {CACHE_FILE} says; run: {command}")
        return cls(folder, Path(root), command, description)

    @staticmethod
    def exists(out: str | Path, corpus: str, intensity: str, rule: str) -> bool:
        """Whether such a cache exists, complete or not."""
        folder = cache_folder(out, corpus, intensity, rule)
        return (folder / CACHE_FILE).is_file() or (folder / PATHS_FILE).is_file()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _tables(self) -> list[pa.Table]:
        tables = []
        for number, shard in enumerate(self.description["shards"]):
            table = read_table(self.folder / shard_files(number)[0], INDEX_SCHEMA)
            if len(table) != shard["images"]:
                raise DataError(f"{self.folder}: shard {number} has another index than {CACHE_FILE}; prepare it again")
            if any((numbers(table, name) < 0).any() for name in ("offset", "height", "width")):
                raise DataError(f"{self.folder}: the index of shard {number} is damaged; prepare it again")
            tables.append(table)
        return tables

    @cached_property
    def _index(self) -> pa.Table:
        return pa.concat_tables(self._tables) if self._tables else INDEX_SCHEMA.empty_table()

    @cached_property
    def _columns(self) -> list[tuple[np.ndarray, ...]]:
        """For each shard the numbers of its index, as views of the file."""
        names = ("offset", "height", "width", "source_height", "source_width")
        return [
            (*(numbers(table, name) for name in names), numbers(table, "geometry").reshape(-1, 10))
            for table in self._tables
        ]

    def positions(self, paths: Sequence[str]) -> np.ndarray:
        """Return the positions, int64 (N,), of N image files as a record table of the corpus names them.

        Raises:
            DataError: some images are not in the cache, or their files have changed since.
        """
        relative = pa.array(relative_paths(paths, self.root), pa.large_string())
        index = pc.index_in(relative, value_set=self._index.column("path"))
        if index.null_count:
            first = relative.filter(index.is_null())[0].as_py()
            raise DataError(
                f"{index.null_count} of {len(relative)} images are not in the cache {self.folder}, the first is"
                f" {first}; run: {self._command}"
            )
        result: np.ndarray = index.to_numpy(zero_copy_only=False).astype(np.int64)
        requested = self._index.select(["path", "source_bytes", "source_mtime_ns"]).take(np.unique(result))
        changed = changed_sources(self.root, requested)
        if len(changed):
            first = self.root / requested.column("path")[int(changed[0])].as_py()
            raise DataError(
                f"{len(changed)} of {len(requested)} images changed after they were prepared, the first is {first};"
                f" run: {self._command}"
            )
        return result

    def read(self, position: int) -> tuple[np.ndarray, tuple[int, ...], tuple[int, int]]:
        """Read the image at one of :meth:`positions`.

        Returns:
            The prepared image, uint8 (h, w), writable; what the resize did (the ten numbers of a
            :class:`medvlp.resizing.Geometry`); and (H, W) of the decoded file.

        Raises:
            UnreadableItemError: the file could not be read when the cache was written; the recorded error.
            DataError: the cache is damaged.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside a cache of {len(self)} images")
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        row = position - int(self._starts[number])
        offset, height, width, source_height, source_width, geometry = (column[row] for column in self._columns[number])
        pixels = np.empty((height, width), dtype=np.uint8)
        if not pixels.size:
            entry = self._index.slice(position, 1).to_pylist()[0]
            path = str(self.root / entry["path"])
            message, reason = (entry[name].replace(PATH_MARK, path) for name in ("message", "reason"))
            raise UnreadableItemError(message, item_id=entry["item_id"], reason=reason)
        self._fill(f"shard-{number:05d}.bin", int(offset), pixels)
        return pixels, tuple(geometry.tolist()), (int(source_height), int(source_width))

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
        while view:
            count = os.preadv(file.fileno(), [view], offset)
            if not count:
                raise DataError(f"{self.folder / name} is cut short; run: {self._command} --overwrite")
            view, offset = view[count:], offset + count

    def mask(self, shapes: Sequence[str], size: tuple[int, int], geometry: Sequence[int]) -> np.ndarray | None:
        """Return the stored union of shapes of an image, bool (h, w), writable; None if it is not stored.

        ``shapes`` are strings of :mod:`medvlp.io.shapes`; :meth:`read` returns the other arguments for the image.
        """
        if not shapes:
            return np.zeros((geometry[9], geometry[8]), dtype=bool)
        keys, *columns = self._masks
        key = np.array(mask_key(shapes, size, geometry), dtype=keys.dtype)
        row = int(np.searchsorted(keys, key))
        if row == len(keys) or keys[row] != key:
            return None
        shard, offset, height, width = (int(column[row]) for column in columns)
        if not height:
            return None
        packed = np.empty((height * width + 7) // 8, dtype=np.uint8)
        self._fill(f"masks-{shard:05d}.bin", offset, packed)
        return np.unpackbits(packed, count=height * width).view(bool).reshape(height, width)

    @cached_property
    def _masks(self) -> tuple[np.ndarray, ...]:
        """Keys in order, and for each its shard, offset, height and width."""
        shards = [k for k, shard in enumerate(self.description["shards"]) if shard["masks"]]
        tables = [read_table(self.folder / shard_files(k)[2], MASK_SCHEMA) for k in shards]
        table = pa.concat_tables([MASK_SCHEMA.empty_table(), *tables])
        keys = np.array(table.column("key").to_pylist(), dtype="S16")
        order = np.argsort(keys, kind="stable")
        shard = np.repeat(np.array(shards, dtype=np.int64), np.array([len(t) for t in tables], dtype=np.int64))
        columns = [table.column(name).to_numpy() for name in ("offset", "height", "width")]
        return tuple(column[order] for column in (keys, shard, *columns))


def verify(folder: str | Path) -> list[str]:
    """Check every byte of the cache in ``folder``; return what is wrong, one line each."""
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
    names = sorted(path.name for path in folder.glob("*-*.*"))
    problems += [f"{name} is not listed in {CACHE_FILE}" for name in names if name not in description["files"]]
    if not problems:
        try:
            problems += _inconsistencies(folder, description)
        except DataError as error:
            problems.append(str(error))
    return problems


def _inconsistencies(folder: Path, description: dict[str, Any]) -> Iterator[str]:
    paths: list[str] = []
    for number, shard in enumerate(description["shards"]):
        index, pixels, mask_index, masks = shard_files(number)
        table = read_table(folder / index, INDEX_SCHEMA)
        if len(table) != shard["images"]:
            yield f"{index} lists {len(table)} images instead of {shard['images']}"
            continue
        areas = numbers(table, "height").astype(np.int64) * numbers(table, "width")
        if not _fills(table, areas, folder / pixels):
            yield f"{index}: offsets and sizes do not fill {pixels}"
        if ((numbers(table, "height") == 0) != (table.column("reason").to_numpy() != "")).any():
            yield f"{index}: images without pixels and without a reason, or with both"
        names = table.column("path").to_pylist()
        if names != sorted(set(names)) or (paths and names and names[0] <= paths[-1]):
            yield f"{index}: paths are not in ascending order"
        paths += names
        if shard["masks"]:
            table = read_table(folder / mask_index, MASK_SCHEMA)
            lengths = (numbers(table, "height").astype(np.int64) * numbers(table, "width") + 7) // 8
            if len(table) != shard["masks"] or not _fills(table, lengths, folder / masks):
                yield f"{mask_index}: offsets and sizes do not fill {masks}"
    if paths != read_table(folder / PATHS_FILE).column("path").to_pylist():
        yield f"{PATHS_FILE} and the shards list different images"


def _fills(table: pa.Table, lengths: np.ndarray, file: Path) -> bool:
    ends = np.cumsum(lengths)
    return np.array_equal(numbers(table, "offset"), ends - lengths) and ends[-1:].sum() == file.stat().st_size
