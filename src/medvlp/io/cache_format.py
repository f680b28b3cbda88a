"""Files, columns and names that the reader and the writer of :mod:`medvlp.io.cache` share."""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medvlp.errors import DataError

FORMAT = 1
"""Version of the layout; other versions are refused."""

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


def prepare_command(
    corpus: str, root: str | Path, out: str | Path, rule: str, intensity: str, options: Mapping[str, Any] | None = None
) -> str:
    """Return the command that makes a cache, for messages."""
    words = ["medvlp", "prepare", "--data", corpus, "--root", str(root), "--out", str(out), "--resize", rule]
    rule_name, damaged, _ = intensity.partition("+damaged")
    words += [] if rule_name == "standard" else ["--intensity", rule_name]
    words += ["--damaged", "accept"] if damaged else []
    for key, value in (options or {}).items():
        words += ["--option", f"{key}={value}"]
    return shlex.join(words)


def mask_key(shapes: Sequence[str], size: tuple[int, int], geometry: Sequence[int]) -> bytes:
    """Hash what a prepared mask depends on, in 128 bits: shapes in order, image size, resize geometry."""
    geometry_text = " ".join(str(int(v)) for v in (*size, *geometry))
    return hashlib.blake2b("\n".join((geometry_text, *shapes)).encode(), digest_size=16).digest()


def relative_paths(paths: Sequence[str], root: str | Path) -> pa.Array:
    """Convert image paths to the form of the index: below ``root`` with slashes, absolute if outside."""
    array = pa.array(paths, type=pa.large_string())
    prefix = "" if str(Path(root)) == "." else os.path.join(str(Path(root)), "")
    below = pc.starts_with(array, prefix) if prefix else pc.invert(pc.starts_with(array, os.sep))
    stripped = pc.utf8_slice_codeunits(array, start=len(prefix))
    if not pc.all(below).as_py():  # the same folder written otherwise, or another one
        base = os.path.join(os.path.abspath(root), "")
        rest = [os.path.abspath(p) for p in array.filter(pc.invert(below)).to_pylist()]
        others = pa.array([p.removeprefix(base) for p in rest], type=pa.large_string())
        stripped = pc.replace_with_mask(stripped, pc.invert(below), others)
    return stripped if os.sep == "/" else pc.replace_substring(stripped, os.sep, "/")


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Open an Arrow file, memory-mapped.

    Args:
        path: the file.
        schema: columns that it must have, without nulls.

    Raises:
        DataError: it is missing, broken or has other columns.
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
    """Return the checked content of ``cache.json``.

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
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
        shards = [(shard["images"], shard["masks"]) for shard in content["shards"]]
        needed = [f"shard-{k:05d}.{end}" for k in range(len(shards)) for end in ("arrow", "bin")]
        needed += [f"masks-{k:05d}.{end}" for k, (_, m) in enumerate(shards) if m for end in ("arrow", "bin")]
        images = content["images"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("other entries") from error
    counts = [number for pair in shards for number in pair] + [size for size, _ in files.values()]
    if any(type(n) is not int or n < 0 for n in counts) or sum(n for n, _ in shards) != images:
        raise ValueError("other numbers")
    if not set(needed) <= files.keys():
        raise ValueError("other files")
    return content


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Return a column without nulls as a view of the file; lists of ten are flattened."""
    column = table.column(name)
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk
    return np.asarray(flat.to_numpy(zero_copy_only=True))


def changed_sources(root: Path, paths: pa.ChunkedArray | pa.Array, sizes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the rows whose source file changed since it was indexed; missing files do not count.

    Args:
        root: folder of the corpus.
        paths: N paths of the index.
        sizes: int64 (N,) bytes, −1 where the file was missing.
        times: int64 (N,) modification times in nanoseconds.

    Returns:
        int64 (M,), ascending.
    """

    def look(start: int) -> list[tuple[int, int]]:
        status_of = []
        for path in paths.slice(start, 4096).to_pylist():
            try:
                status = os.stat(root / path)
                status_of.append((status.st_size, status.st_mtime_ns))
            except OSError:
                status_of.append((-1, 0))
        return status_of

    # threads, because a network disk answers slowly, but many questions at once
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(look, range(0, len(paths), 4096)))
    now = np.array([pair for part in parts for pair in part], dtype=np.int64).reshape(-1, 2)
    different = (now[:, 0] != sizes) | (now[:, 1] != times)
    return np.flatnonzero(different & (now[:, 0] >= 0))
