"""Result rows: one JSON object per line and metric, with everything that made the number."""

import contextlib
import fcntl
import json
import os
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp._version import __version__
from medvlp.errors import DataError
from medvlp.io.packed import READ_ERRORS, read_unpacked
from medvlp.store import atomic_write, file_sha256

_VERSIONS = ("torch", "torchvision", "lightning", "timm", "transformers", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of medvlp and of the libraries that compute."""
    installed = {"medvlp": __version__, "python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def hardware() -> str:
    """Return the number and name of the accelerators, or of the processors."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {name}"


@dataclass(frozen=True)
class ResultRow:
    """One number and what made it; None where a field does not apply."""

    method: str  # name of the method, or of a bare encoder
    checkpoint: str  # SHA-256 of the encoder's weights: equal weights, equal hash, wherever the file lies
    task: str
    protocol: str  # of the evaluation
    dataset: str  # corpus
    part: str  # of the split, that was scored
    split: str | None
    split_sha256: str | None  # over its members
    fraction: float | None  # of the training part
    seed: int  # of the run
    metric: str  # by its protocol name
    value: float | None
    low: float | None = None  # percentile interval of the bootstrap over patients
    high: float | None = None
    level: float | None = None
    resamples: int = 0
    samples: int = 0  # images scored
    groups: int = 0  # patients scored
    predictions: str | None = None  # Parquet file of per-sample predictions, relative to the rows' file
    predictions_sha256: str | None = None
    config_sha256: str | None = None  # hash of the settings of model and data
    seconds: float | None = None  # duration of the run
    hardware: str = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    notes: dict[str, Any] = field(default_factory=dict)


def append_rows(path: str | Path, rows: Iterable[ResultRow]) -> Path:
    """Append rows to a JSON Lines file, as :func:`append_lines` does; NaN is written as null."""
    return append_lines(path, [json.dumps(_without_nan(asdict(row)), allow_nan=False) for row in rows])


def append_lines(path: str | Path, lines: Iterable[str]) -> Path:
    """Append lines, given without their newlines, to a file, which is created if necessary; return its path.

    A lock is held, so that several processes may write the same file. A line that a killed process cut short is closed
    first: it stays alone on its line, where :func:`read_rows` reports it. If the disk is full, nothing is appended.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        cut = size > 0 and file.read(1) != b"\n"
        left = memoryview((("\n" if cut else "") + "".join(f"{line}\n" for line in lines)).encode())
        try:
            while left:  # the system may take less than it is given
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise
    return path


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN test
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return value


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON file or line.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or has a number that is too long.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"))
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates is no text
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DataError: the file cannot be read as JSON, or holds no object; the message ends with ``remedy``.
    """
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} at its top, not an object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())}); {remedy}") from error
    return content


def numbered_rows(path: str | Path) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Read a JSON Lines file of result rows, plain or compressed with gzip (``.gz``).

    Returns:
        Line (from 1) to its row, in the file's order; and the lines that are no rows: cut short, not UTF-8, not JSON.

    Raises:
        DataError: no such file, it is damaged as a whole, or unpacks to far more than its size suggests.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such results file; medvlp test writes one")
    try:
        lines = read_unpacked(path).split(b"\n")
    except READ_ERRORS as error:
        raise DataError(f"{path}: damaged ({error}); copy it again") from error
    rows: dict[int, dict[str, Any]] = {}
    broken = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "metric" in row:
            rows[number] = row
        else:
            broken.append(number)
    return rows, broken


def warn_of_broken(path: str | Path, lines: Sequence[int]) -> None:
    """Warn of lines that are no result rows, with their numbers."""
    if lines:
        more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
        warnings.warn(
            f"{path}: line(s) {list(lines[:10])}{more} are no result rows (cut short or damaged): skipped",
            stacklevel=3,
        )


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read rows as :func:`numbered_rows`, without the numbers; truncated lines are skipped with a warning."""
    rows, broken = numbered_rows(path)
    warn_of_broken(path, broken)
    return list(rows.values())


def write_predictions(path: str | Path, frame: pd.DataFrame) -> str:
    """Write per-sample predictions (``medvlp.metrics.samples.Samples.to_frame``) as Parquet; return the SHA-256."""
    path = Path(path)
    with atomic_write(path) as file:
        frame.to_parquet(file, index=False)
    return file_sha256(path)
