"""The format of a pixel cache, for the reader :mod:`medvlp.io.cache` and the writer :mod:`medvlp.io.cache_writer`.

A cache is a folder ``OUT/CORPUS/INTENSITY-RULE``:

* ``shard-00000.bin``: uint8 pixels of the images, one after the other, without any header;
* ``shard-00000.arrow``: the shard's index, one row per image (``INDEX_SCHEMA``); its metadata hold the size and
  SHA-256 of the ``.bin`` files. It is written last, so a shard is complete or absent;
* ``masks-00000.bin``, ``masks-00000.arrow``: bit-packed masks of the shard's images (``MASK_SCHEMA``), if any;
* ``paths.arrow``: the images of the whole cache, in the order of their paths;
* ``skipped.csv``: what could not be prepared;
* ``cache.json``: what the cache is and the size and SHA-256 of every file. It is written last.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medvlp.errors import DataError

FORMAT = 1
"""Version of the format; other versions are refused."""

CACHE_FILE = "cache.json"
PATHS_FILE = "paths.arrow"
SKIPPED_FILE = "skipped.csv"

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
"""Columns of ``shard-*.arrow``."""

MASK_SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),  # mask_key
        ("offset", pa.int64()),
        ("height", pa.int32()),  # 0 if the shapes cannot be drawn
        ("width", pa.int32()),
    ]
)
"""Columns of ``masks-*.arrow``."""

PATH_MARK = "\x00"
"""Stands for the file's path in stored messages, since the corpus may be moved."""


def cache_folder(out: str | Path, corpus: str, intensity: str, rule: str) -> Path:
    """Return the folder of a cache."""
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
    """Open an Arrow file, memory-mapped.

    Raises:
        DataError: it is missing, broken, has nulls or other columns than ``schema``.
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
