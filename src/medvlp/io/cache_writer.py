"""Write the files of :mod:`medvlp.io.cache_format`; each is complete or absent, whatever ends the process."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
    PATH_MARK,
    PATHS_FILE,
    SKIPPED_FILE,
    changed_sources,
    mask_key,
    read_table,
    shard_files,
)
from medvlp.store import atomic_write, file_sha256

_META = b"medvlp"
_PACKAGES = ("medvlp", "numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "simplejpeg", "torch", "torchvision")
_PATHS = pa.schema([("path", pa.large_string())])


def versions() -> dict[str, str]:
    """Versions of the packages that decode and resize; shards of other versions are not kept."""
    installed = dict.fromkeys(_PACKAGES, "")
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


@dataclass(frozen=True)
class PreparedImage:
    """One image after decoding and resizing, or why it cannot be read; see ``INDEX_SCHEMA``.

    ``masks`` holds height, width and bits (:func:`numpy.packbits`) by key (:func:`mask_key`); height 0 means that the
    shapes cannot be drawn.
    """

    path: str
    source_bytes: int
    source_mtime_ns: int
    source_digest: bytes
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    geometry: tuple[int, ...] = (0,) * 10
    size: tuple[int, int] = (0, 0)
    masks: Mapping[bytes, tuple[int, int, np.ndarray]] = field(default_factory=dict)
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


def remove_shards(folder: Path, start: int) -> None:
    """Remove the shards from number ``start`` on, their indexes first, so that each is absent at once."""
    for pattern in ("shard-*.arrow", "shard-*.*", "masks-*.*"):
        for path in sorted(folder.glob(pattern)):
            if int(path.name.split("-")[1].split(".")[0]) >= start:
                path.unlink(missing_ok=True)


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> tuple[list[int], dict[str, Any]]:
    """Write arrays one after the other; return their offsets, and the file's size and hash."""
    digest, offsets, length = hashlib.sha256(), [], 0
    with atomic_write(path) as file:
        for array in arrays:
            data = array.tobytes()
            file.write(data)
            digest.update(data)
            offsets.append(length)
            length += len(data)
    return offsets, {"bytes": length, "sha256": digest.hexdigest()}


def write_shard(folder: Path, number: int, images: Sequence[PreparedImage], packages: dict[str, str]) -> None:
    """Write the files of one shard, the index last: without it the shard does not exist."""
    names = shard_files(number)
    index, pixels, mask_index, masks = names
    for name in names:  # the older index first, so that it is never combined with newer pixels
        (folder / name).unlink(missing_ok=True)
    offsets, entry = _write_arrays(folder / pixels, [image.pixels for image in images])
    files = {pixels: entry}
    masks_by_key = {key: mask for image in images for key, mask in image.masks.items()}
    if masks_by_key:
        heights, widths, bits = zip(*masks_by_key.values(), strict=True)
        mask_offsets, files[masks] = _write_arrays(folder / masks, bits)
        columns = [list(masks_by_key), mask_offsets, heights, widths]
        write_table(folder / mask_index, pa.table(columns, schema=MASK_SCHEMA))
    meta = {"format": FORMAT, "packages": packages, "files": files, "masks": len(masks_by_key)}
    table = {
        "offset": offsets,
        "height": [image.pixels.shape[0] for image in images],
        "width": [image.pixels.shape[1] for image in images],
        "source_height": [image.size[0] for image in images],
        "source_width": [image.size[1] for image in images],
    }
    table |= {name: [getattr(image, name) for image in images] for name in INDEX_SCHEMA.names if name not in table}
    schema = INDEX_SCHEMA.with_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    write_table(folder / index, pa.table(table, schema=schema))


def _meta(table: pa.Table) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
    return meta


def is_current(
    folder: Path, number: int, root: Path, shapes: Mapping[str, Sequence[Sequence[str]]], packages: dict[str, str]
) -> bool:
    """Whether a shard is complete, and written from the same files by the same versions.

    Args:
        folder: of the cache.
        number: of the shard.
        root: of the corpus.
        shapes: its images in order, each with the lists of shapes whose masks the shard should hold.
        packages: :func:`versions`.
    """
    index, _, mask_index, _ = shard_files(number)
    try:
        table = read_table(folder / index, INDEX_SCHEMA)
        meta = _meta(table)
        current = (meta.get("format"), meta["packages"]) == (FORMAT, packages)
        current &= table.column("path").to_pylist() == list(shapes)
        current &= all((folder / name).stat().st_size == entry["bytes"] for name, entry in meta["files"].items())
        keys = set(read_table(folder / mask_index, MASK_SCHEMA).column("key").to_pylist()) if meta["masks"] else set()
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError):  # absent or broken
        return False
    if not current:
        return False
    for row, lists in enumerate(shapes.values()):
        if any(lists):
            h, w, geometry = (table.column(c)[row].as_py() for c in ("source_height", "source_width", "geometry"))
            if h and any(mask_key(names, (h, w), geometry) not in keys for names in lists if names):
                return False
    return not len(changed_sources(root, table))


def finish(
    folder: Path, shards: int, description: Mapping[str, Any], dropped: Sequence[tuple[str, str, str]]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Write ``skipped.csv``, then ``cache.json``, which makes the cache complete.

    Args:
        folder: of the cache; all its other files are written.
        shards: their number.
        description: corpus, intensity, rule and versions of the packages.
        dropped: rows of ``skipped.csv`` for records without an image: "record", its id, the reason.

    Returns:
        The content of ``cache.json``, and path and reason of the images that cannot be read.
    """
    files: dict[str, dict[str, Any]] = {}
    listed, written = [], [PATHS_FILE, SKIPPED_FILE]
    unreadable: list[tuple[str, str]] = []
    for number in range(shards):
        index, pixels, mask_index, _ = shard_files(number)
        table = read_table(folder / index)
        meta = _meta(table)
        files |= meta["files"]
        written += [index, mask_index] if meta["masks"] else [index]
        listed.append({"images": len(table), "bytes": meta["files"][pixels]["bytes"], "masks": meta["masks"]})
        pairs = zip(table.column("path").to_pylist(), table.column("reason").to_pylist(), strict=True)
        unreadable += [(path, reason.replace(PATH_MARK, path)) for path, reason in pairs if reason]
    with atomic_write(folder / SKIPPED_FILE, "w") as file:
        rows = [("kind", "item", "reason"), *dropped, *(("image", *pair) for pair in unreadable)]
        csv.writer(file, lineterminator="\n").writerows(rows)
    for name in written:
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
    content = {
        "format": FORMAT,
        **description,
        "images": sum(s["images"] for s in listed),
        "unreadable": len(unreadable),
        "masks": sum(s["masks"] for s in listed),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "shards": listed,
        "files": dict(sorted(files.items())),
    }
    with atomic_write(folder / CACHE_FILE, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    return content, unreadable
