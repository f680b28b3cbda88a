"""Writing the files of :mod:`medvlp.io.cache`; each is complete or absent, whatever ends the process."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
from medvlp.store import atomic_write, file_sha256

_META = b"medvlp"
_KINDS = ("shard", "masks")
_PACKAGES = ("medvlp", "numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "simplejpeg", "torch", "torchvision")
_PATHS = pa.schema([("path", pa.large_string())])


def versions() -> dict[str, str]:
    """Versions of the packages that decode and resize; shards of other versions are not kept."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = ""
    return installed


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


def write_paths(folder: Path, paths: Sequence[str], per_shard: int) -> None:
    """Write what the cache will hold, before anything is prepared."""
    schema = _PATHS.with_metadata({_META: str(per_shard).encode()})
    write_table(folder / PATHS_FILE, pa.table({"path": list(paths)}, schema=schema))


def read_paths(folder: Path) -> tuple[list[str], int] | None:
    """Return paths and images per shard as given to :func:`write_paths`; None without the file."""
    if not (folder / PATHS_FILE).is_file():
        return None
    table = read_table(folder / PATHS_FILE, _PATHS)
    try:
        return table.column("path").to_pylist(), max(int((table.schema.metadata or {})[_META]), 1)
    except (KeyError, ValueError) as error:
        raise DataError(f"{folder / PATHS_FILE} is broken; prepare the corpus again with --overwrite") from error


def shard_files(number: int) -> tuple[str, str, str, str]:
    """Names of a shard's files: index, pixels, mask index, masks."""
    index, pixels, mask_index, masks = (f"{kind}-{number:05d}.{end}" for kind in _KINDS for end in ("arrow", "bin"))
    return index, pixels, mask_index, masks


def remove_shards(folder: Path, start: int) -> None:
    """Remove the shards from number ``start`` on, their indexes first, so that each is absent at once."""
    names = [p.name for kind in _KINDS for p in sorted(folder.glob(f"{kind}-*.*"))]
    last = [n for n in names if int(n.split("-")[1].split(".")[0]) >= start]
    for name in sorted(last, key=lambda n: not (n.startswith("shard-") and n.endswith(".arrow"))):
        (folder / name).unlink(missing_ok=True)


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> tuple[list[int], dict[str, Any]]:
    """Write arrays one after the other; returns their offsets, and the file's size and hash."""
    digest, offsets, length = hashlib.sha256(), [], 0
    with atomic_write(path) as file:
        for array in arrays:
            data = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
            file.write(data)
            digest.update(data)
            offsets.append(length)
            length += len(data)
    return offsets, {"bytes": length, "sha256": digest.hexdigest()}


def write_shard(
    folder: Path, number: int, images: Sequence[PreparedImage], packages: dict[str, str]
) -> list[tuple[str, str]]:
    """Write the files of one shard, the index last: without it the shard does not exist.

    Args:
        folder: of the cache.
        number: of the shard.
        images: in the order of the paths.
        packages: :func:`versions`.

    Returns:
        Path and reason of the images that cannot be read.
    """
    names = shard_files(number)
    index, pixels, mask_index, masks = names
    for name in names:  # the older index first, so that it never stands beside newer pixels
        (folder / name).unlink(missing_ok=True)
    stored = [np.zeros((0, 0), np.uint8) if image.pixels is None else image.pixels for image in images]
    offsets, entry = _write_arrays(folder / pixels, stored)
    files = {pixels: entry}
    unique: dict[bytes, PreparedMask] = {}
    for mask in (mask for image in images for mask in image.masks):
        unique.setdefault(mask.key, mask)
    if unique:
        drawn = list(unique.values())
        mask_offsets, files[masks] = _write_arrays(folder / masks, [mask.packed for mask in drawn])
        columns = [list(unique), mask_offsets, [mask.height for mask in drawn], [mask.width for mask in drawn]]
        write_table(folder / mask_index, pa.table(columns, schema=MASK_SCHEMA))
    meta = {"format": FORMAT, "packages": packages, "files": files, "masks": len(unique)}
    table = {
        "offset": offsets,
        "height": [array.shape[0] for array in stored],
        "width": [array.shape[1] for array in stored],
        "geometry": [list(image.geometry) for image in images],
        "source_height": [image.size[0] for image in images],
        "source_width": [image.size[1] for image in images],
    }
    table |= {name: [getattr(image, name) for image in images] for name in INDEX_SCHEMA.names if name not in table}
    schema = INDEX_SCHEMA.with_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    write_table(folder / index, pa.table(table, schema=schema))
    return [(image.path, image.reason) for image in images if image.reason]


def _meta(table: pa.Table) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
    return meta


def kept_shard(
    folder: Path,
    number: int,
    root: Path,
    paths: Sequence[str],
    shapes: Sequence[Sequence[Sequence[str]]],
    packages: dict[str, str],
) -> list[tuple[str, str]] | None:
    """Check that a shard is complete, and made from the same files by the same versions.

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
    """Write the listing of what was skipped: (record or image, its id or path, the reason)."""
    with atomic_write(folder / SKIPPED_FILE, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "item", "reason"))
        writer.writerows(rows)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


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
        files |= {name: _entry(folder / name) for name in written}
        listed.append({"images": len(table), "bytes": meta["files"][pixels]["bytes"], "masks": meta["masks"]})
    files |= {name: _entry(folder / name) for name in (PATHS_FILE, SKIPPED_FILE)}
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
    with atomic_write(folder / CACHE_FILE, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    return content
