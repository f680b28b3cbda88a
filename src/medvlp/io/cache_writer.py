"""Writing the files of :mod:`medvlp.io.cache`, so that each is complete or absent, whatever ends the process."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from medvlp.errors import DataError
from medvlp.io.cache_format import (
    CACHE_FILE,
    FORMAT,
    INDEX_SCHEMA,
    MASK_SCHEMA,
    PATHS_FILE,
    SKIPPED_FILE,
    changed_sources,
    mask_key,
    read_table,
)
from medvlp.store import atomic_write, sha256_of

_META = b"medvlp"
_PACKAGES = ("medvlp", "numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "simplejpeg", "torch", "torchvision")


def versions() -> dict[str, str]:
    """Versions of the packages that decode and resize; shards of other versions are not kept."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@dataclass(frozen=True)
class PreparedMask:
    """One mask after the resize.

    Args:
        key: :func:`medvlp.io.cache_format.mask_key` of the shapes.
        height: rows, 0 if the shapes cannot be drawn.
        width: columns.
        packed: uint8, the pixels in rows as bits (:func:`numpy.packbits`).
    """

    key: bytes
    height: int
    width: int
    packed: np.ndarray


@dataclass(frozen=True)
class PreparedImage:
    """One image after decoding and resizing, or why it cannot be read; see ``INDEX_SCHEMA``."""

    path: str
    source_bytes: int
    source_mtime_ns: int
    source_digest: bytes
    pixels: np.ndarray | None = None
    geometry: tuple[int, ...] = (0,) * 10
    size: tuple[int, int] = (0, 0)
    masks: tuple[PreparedMask, ...] = ()
    reason: str = ""
    message: str = ""
    item_id: str = ""


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file of one record batch, which can be mapped without a copy."""
    whole = table.combine_chunks()
    with atomic_write(path) as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=max(len(whole), 1))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder; the lock ends with the process, however that ends.

    Raises:
        DataError: another process is writing there.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where two writers at once are the user's care
        yield
        return
    with (folder / ".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is preparing {folder}; wait for it to end") from error
        except OSError:
            pass  # a file system without locks
        yield


def write_paths(folder: Path, paths: Sequence[str], per_shard: int) -> None:
    """Write down what the cache will hold, before anything is prepared."""
    schema = pa.schema([("path", pa.large_string())], metadata={_META: str(per_shard).encode()})
    write_table(folder / PATHS_FILE, pa.table({"path": list(paths)}, schema=schema))


def read_paths(folder: Path) -> tuple[list[str], int] | None:
    """What :func:`write_paths` wrote: paths in order and images per shard; None if nothing was."""
    if not (folder / PATHS_FILE).is_file():
        return None
    schema = pa.schema([("path", pa.large_string())])
    table = read_table(folder / PATHS_FILE, schema)
    try:
        return table.column("path").to_pylist(), max(int((table.schema.metadata or {})[_META]), 1)
    except (KeyError, ValueError) as error:
        raise DataError(f"{folder / PATHS_FILE} is broken; prepare the corpus again with --overwrite") from error


def shard_files(number: int) -> tuple[str, str, str, str]:
    """Names of a shard's files: index, pixels, mask index, masks."""
    return (
        f"shard-{number:05d}.arrow",
        f"shard-{number:05d}.bin",
        f"masks-{number:05d}.arrow",
        f"masks-{number:05d}.bin",
    )


def remove_shards(folder: Path, start: int) -> None:
    """Remove the shards from number ``start`` on, their indexes first, so that each is absent at once."""
    names = sorted(p.name for p in folder.glob("*-*.*") if p.name.startswith(("shard-", "masks-")))
    last = [n for n in names if int(n.split("-")[1].split(".")[0]) >= start]
    for name in sorted(last, key=lambda n: not (n.startswith("shard-") and n.endswith(".arrow"))):
        (folder / name).unlink(missing_ok=True)


@dataclass
class _Bytes:
    """A file being written, with its length and digest."""

    file: IO[bytes]
    length: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def append(self, data: np.ndarray) -> int:
        offset = self.length
        view = np.ascontiguousarray(data).data.cast("B") if data.size else memoryview(b"")
        self.file.write(view)
        self.digest.update(view)
        self.length += len(view)
        return offset

    @property
    def entry(self) -> dict[str, Any]:
        return {"bytes": self.length, "sha256": self.digest.hexdigest()}


class ShardWriter:
    """Writes one shard; nothing of it is there before :meth:`commit` ends.

    Args:
        folder: of the cache.
        number: of the shard.
        packages: :func:`versions`.
    """

    def __init__(self, folder: Path, number: int, packages: dict[str, str]) -> None:
        self._folder = folder
        self._names = shard_files(number)
        self._packages = packages
        self._rows: list[PreparedImage] = []
        self._places: list[tuple[int, int, int]] = []
        self._masks: dict[bytes, tuple[int, int, int]] = {}
        self._stack = ExitStack()
        # an older shard's index goes first, so that it never stands beside newer pixels
        for name in self._names:
            (folder / name).unlink(missing_ok=True)
        self._pixels = _Bytes(self._stack.enter_context(atomic_write(folder / self._names[1])))
        self._bits: _Bytes | None = None

    def add(self, image: PreparedImage) -> None:
        """Add the next image in the order of the paths."""
        height, width = (0, 0) if image.pixels is None else image.pixels.shape
        offset = self._pixels.length if image.pixels is None else self._pixels.append(image.pixels)
        self._places.append((offset, height, width))
        for mask in image.masks:
            if mask.key in self._masks:
                continue
            if self._bits is None:
                self._bits = _Bytes(self._stack.enter_context(atomic_write(self._folder / self._names[3])))
            self._masks[mask.key] = (self._bits.append(mask.packed), mask.height, mask.width)
        # without the pixels, which are written
        self._rows.append(replace(image, pixels=None, masks=()))

    def abort(self) -> None:
        """Leave nothing behind."""
        with suppress(_Aborted), self._stack:
            raise _Aborted

    def commit(self) -> list[tuple[str, str]]:
        """Put the files into their places, the index last.

        Returns:
            Path and reason of the images that cannot be read.
        """
        index, pixels, mask_index, masks = self._names
        self._stack.close()
        files = {pixels: self._pixels.entry}
        if self._bits is not None:
            files[masks] = self._bits.entry
            columns = map(list, zip(*self._masks.values(), strict=True))
            write_table(self._folder / mask_index, pa.table([list(self._masks), *columns], schema=MASK_SCHEMA))
        meta = {"format": FORMAT, "packages": self._packages, "files": files, "masks": len(self._masks)}
        schema = INDEX_SCHEMA.with_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
        rows, places = self._rows, self._places
        columns_by_name = {
            **{name: [place[i] for place in places] for i, name in enumerate(("offset", "height", "width"))},
            "geometry": [list(r.geometry) for r in rows],
            "source_height": [r.size[0] for r in rows],
            "source_width": [r.size[1] for r in rows],
        }
        for name in INDEX_SCHEMA.names:
            if name not in columns_by_name:
                columns_by_name[name] = [getattr(r, name) for r in rows]
        write_table(self._folder / index, pa.table(columns_by_name, schema=schema))
        return [(r.path, r.reason) for r in rows if r.reason]


class _Aborted(Exception):
    """Ends the writing of a shard."""


def _meta(table: pa.Table) -> dict[str, Any]:
    return json.loads((table.schema.metadata or {}).get(_META, b"{}"))


def kept_shard(
    folder: Path,
    number: int,
    root: Path,
    paths: Sequence[str],
    shapes: Sequence[Sequence[Sequence[str]]],
    packages: dict[str, str],
) -> list[tuple[str, str]] | None:
    """Whether a shard is there, complete, and made from the same files by the same versions.

    Args:
        folder: of the cache.
        number: of the shard.
        root: of the corpus.
        paths: its n images.
        shapes: for each image the lists of shapes whose masks the shard should hold.
        packages: :func:`versions`.

    Returns:
        Path and reason of its unreadable images if it can stay, else None.
    """
    index, _, mask_index, _ = (folder / name for name in shard_files(number))
    try:
        table = read_table(index, INDEX_SCHEMA)
        meta = _meta(table)
        same = (
            meta.get("format") == FORMAT
            and meta["packages"] == packages
            and table.column("path").to_pylist() == list(paths)
            and all((folder / name).stat().st_size == entry["bytes"] for name, entry in meta["files"].items())
        )
        if not same:
            return None
        stored = set(read_table(mask_index, MASK_SCHEMA).column("key").to_pylist()) if meta["masks"] else set()
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError):  # absent or broken
        return None
    for row in (i for i, s in enumerate(shapes) if any(s)):
        h, w, geometry = (table.column(c)[row].as_py() for c in ("source_height", "source_width", "geometry"))
        if h and any(mask_key(s, (h, w), geometry) not in stored for s in shapes[row] if s):
            return None
    sizes, times = (table.column(c).to_numpy() for c in ("source_bytes", "source_mtime_ns"))
    if len(changed_sources(root, table.column("path"), sizes, times)):
        return None
    reasons = table.column("reason").to_pylist()
    return [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]


def write_skipped(folder: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write the listing of what was left out: (record or image, its id or path, the reason)."""
    with atomic_write(folder / SKIPPED_FILE) as file:
        lines: list[str] = []
        writer = csv.writer(_Lines(lines), lineterminator="\n")
        writer.writerow(("kind", "item", "reason"))
        writer.writerows(rows)
        file.write("".join(lines).encode())


class _Lines:
    """What :func:`csv.writer` writes to."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def finish(
    folder: Path, shards: int, description: dict[str, Any], packages: dict[str, str], unreadable: int
) -> dict[str, Any]:
    """Write ``cache.json``, which makes the cache complete.

    Args:
        folder: of the cache; all its other files are written.
        shards: their number.
        description: corpus, intensity and rule.
        packages: :func:`versions`.
        unreadable: number of images that cannot be read.

    Returns:
        The content of the file.
    """
    files: dict[str, dict[str, Any]] = {}
    listed = []
    for number in range(shards):
        index, pixels, mask_index, _ = shard_files(number)
        table = read_table(folder / index)
        meta = _meta(table)
        files |= meta["files"]
        written = [index, mask_index] if meta["masks"] else [index]
        files |= {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in written}
        listed.append({"images": len(table), "bytes": meta["files"][pixels]["bytes"], "masks": meta["masks"]})
    for name in (PATHS_FILE, SKIPPED_FILE):
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    content = {
        "format": FORMAT,
        **description,
        "packages": packages,
        "images": sum(s["images"] for s in listed),
        "unreadable": unreadable,
        "masks": sum(s["masks"] for s in listed),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "shards": listed,
        "files": dict(sorted(files.items())),
    }
    with atomic_write(folder / CACHE_FILE) as file:
        file.write((json.dumps(content, indent=1, sort_keys=False) + "\n").encode())
    return content
