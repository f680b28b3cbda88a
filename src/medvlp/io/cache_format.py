"""The format of a pixel cache, and how its files are written; :class:`medvlp.io.cache.PixelCache` reads them.

A cache is a folder ``OUT/CORPUS/INTENSITY-RULE``:

* ``shard-00000.bin``: uint8 pixels of the images, one after the other, without any header;
* ``shard-00000.arrow``: the shard's index, one row per image (``INDEX_SCHEMA``); its metadata hold the size and
  SHA-256 of the ``.bin`` files. It is written last, so a shard is complete or absent;
* ``masks-00000.bin``, ``masks-00000.arrow``: bit-packed masks of the shard's images (``MASK_SCHEMA``), if any;
* ``paths.arrow``: the images of the whole cache, in the order of their paths;
* ``skipped.csv``: what could not be prepared;
* ``cache.json``: what the cache is and the size and SHA-256 of every file. It is written last.

Each file is complete or absent, whatever ends the process.
"""

import csv
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medvlp.errors import DataError
from medvlp.store import atomic_write, file_sha256

FORMAT = 1  # other versions are refused
CACHE_FILE = "cache.json"
PATHS_FILE = "paths.arrow"
SKIPPED_FILE = "skipped.csv"
PATH_MARK = "\x00"  # stands for the file's path in stored messages, since the corpus may be moved

INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),  # below the corpus's root, with slashes; absolute if outside
        ("offset", pa.int64()),  # first byte in the shard's .bin file
        ("height", pa.int32()),  # of the prepared image; 0 if unreadable
        ("width", pa.int32()),
        ("geometry", pa.list_(pa.int32(), 10)),  # medvlp.resizing.Geometry
        ("source_height", pa.int32()),  # of the decoded file
        ("source_width", pa.int32()),
        ("source_bytes", pa.int64()),  # of the file; −1 if it was missing
        ("source_mtime_ns", pa.int64()),
        ("source_digest", pa.binary(16)),  # BLAKE2b of the file's bytes, 128 bits
        ("reason", pa.large_string()),  # why the image cannot be read, "" if it can
        ("message", pa.large_string()),  # of the error, with PATH_MARK for the file
        ("item_id", pa.large_string()),  # of the error
    ]
)
MASK_SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),  # mask_key
        ("offset", pa.int64()),
        ("height", pa.int32()),  # 0 if the shapes cannot be drawn
        ("width", pa.int32()),
    ]
)
_META = b"medvlp"
_PACKAGES = ("medvlp", "numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "simplejpeg", "torch", "torchvision")
_PATHS = pa.schema([("path", pa.large_string())])


def cache_folder(out: str | Path, corpus: str, intensity: str, rule: str) -> Path:
    """Return ``OUT/CORPUS/INTENSITY-RULE``, the rule's colon as an underscore."""
    return Path(out) / corpus / f"{intensity}-{rule.replace(':', '_')}"


def shard_files(number: int) -> tuple[str, str, str, str]:
    """Return the names of a shard's index, pixels, mask index and masks."""
    index, masks = f"shard-{number:05d}", f"masks-{number:05d}"
    return f"{index}.arrow", f"{index}.bin", f"{masks}.arrow", f"{masks}.bin"


def prepare_command(corpus: str, root: str | Path, out: str | Path, rule: str, intensity: str) -> str:
    """Return the command that writes a cache, for messages."""
    words = ["medvlp", "prepare", "--data", corpus, "--root", str(root), "--out", str(out), "--resize", rule]
    rule_name, damaged, _ = intensity.partition("+damaged")
    words += [] if rule_name == "standard" else ["--intensity", rule_name]
    words += ["--damaged", "accept"] if damaged else []
    return shlex.join(words)


def mask_key(shapes: Sequence[str], size: tuple[int, int], geometry: Sequence[int]) -> bytes:
    """Hash what a prepared mask depends on, in 128 bits: shapes in order, image size, resize geometry."""
    geometry_text = " ".join(str(int(v)) for v in (*size, *geometry))
    return hashlib.blake2b("\n".join((geometry_text, *shapes)).encode(), digest_size=16).digest()


def relative_paths(paths: Sequence[str], root: str | Path) -> list[str]:
    """Convert image paths to the form of the index: below ``root`` with slashes, absolute if outside."""
    folder = str(Path(root))
    prefix = "" if folder == "." else os.path.join(folder, "")
    base = os.path.join(os.path.abspath(root), "")

    def relative(path: str) -> str:
        below = path.startswith(prefix) if prefix else not os.path.isabs(path)
        return path.removeprefix(prefix) if below else os.path.abspath(path).removeprefix(base)

    return [relative(path) for path in paths]


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Open an Arrow file, memory-mapped; with a ``schema``, it must have these columns and no nulls.

    Raises:
        DataError: it is missing or broken.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
        if schema is not None and (not table.schema.equals(schema) or any(c.null_count for c in table.columns)):
            raise pa.ArrowInvalid("other columns")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} is missing or broken; prepare the corpus again with --overwrite") from error
    return table


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of ``cache.json``, checked if it is of this format.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged.
    """
    content = json.loads((folder / CACHE_FILE).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no object")
    if content.get("format") != FORMAT:
        return content
    try:
        shards = [(shard["images"], shard["masks"]) for shard in content["shards"]]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
        counts = [*(number for pair in shards for number in pair), *(size for size, _ in files.values())]
        required = {name for k, (_, masks) in enumerate(shards) for name in shard_files(k)[: 4 if masks else 2]}
        valid = all(type(n) is int and n >= 0 for n in counts) and required <= files.keys()
        valid = valid and sum(images for images, _ in shards) == content["images"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("other entries") from error
    if not valid:
        raise ValueError("other numbers or files")
    return content


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Return a column without nulls as a view of the file; lists of ten are flattened."""
    column = table.column(name)
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk
    return np.asarray(flat.to_numpy(zero_copy_only=True))


def source_state(path: str | Path) -> tuple[int, int]:
    """Return a file's size in bytes and modification time in nanoseconds, or (−1, 0) if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def changed_sources(root: Path, table: pa.Table) -> np.ndarray:
    """Return the rows of an index, ascending, whose source file changed since; missing files do not count."""

    def states(start: int) -> list[tuple[int, int]]:
        return [source_state(root / path) for path in table.column("path").slice(start, 4096).to_pylist()]

    # threads, because a network disk answers slowly, but many questions at once
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(states, range(0, len(table), 4096)))
    sizes, times = np.array([pair for part in parts for pair in part], dtype=np.int64).reshape(-1, 2).T
    stored_sizes, stored_times = (table.column(name).to_numpy() for name in ("source_bytes", "source_mtime_ns"))
    return np.flatnonzero(((sizes != stored_sizes) | (times != stored_times)) & (sizes >= 0))


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

    ``shapes`` names its images in order, each with the lists of shapes whose masks the shard should hold.
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
    """Write ``skipped.csv``, then ``cache.json``, which makes the cache complete; all other files must be written.

    Args:
        folder: of the cache.
        shards: their number.
        description: corpus, intensity, rule and versions of the packages.
        dropped: rows of ``skipped.csv`` for records: "record", its id, the reason.

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
