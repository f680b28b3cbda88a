"""Compute the metrics of result rows again from their predictions, also in bootstrap resamples of the patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from medvlp._version import __version__
from medvlp.errors import ConfigError, DataError
from medvlp.metrics.bootstrap import Measures, distribution, group_codes
from medvlp.metrics.samples import Samples
from medvlp.store import atomic_write, file_sha256, value_sha256
from medvlp.tasks.catalog import TASKS

Row = Mapping[str, Any]
"""A row of a results file, as :func:`medvlp.benchmark.rows.records` returns it."""

_RESAMPLED, _PREDICTIONS = 2048, 64
"""Numbers of files whose resampled metrics, and whose predictions, are kept in memory."""

_SEED = 0


class RowError(DataError):
    """The numbers of a row cannot be computed again; ``kind`` is one of :data:`medvlp.benchmark.verify.KINDS`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Predictions:
    """Predictions of one run: N samples, their identifiers and patients, and (N,) long codes of the patients."""

    samples: Samples
    codes: Tensor
    ids: tuple[str, ...]
    groups: tuple[str, ...]


def measures_of(row: Row) -> Measures:
    """Return the function from samples (and weights, (R, N)) to all metrics of the row's task."""
    if row["task"] not in TASKS:
        raise RowError("no facts", f"unknown task {row['task']!r}; expected one of: {', '.join(TASKS)}")
    try:
        return TASKS[row["task"]].load().measures_from(row.get("notes") or {})
    except KeyError as error:
        raise RowError(
            "no facts",
            f"written before facts were recorded: its notes have no {error.args[0]!r}; run medvlp test again",
        ) from None


def predictions_path(row: Row, folder: str | Path) -> Path:
    """Return the predictions file of a row of the results file in ``folder``; without one it is a :class:`RowError`."""
    name, line = row.get("predictions"), f", line {row['line']}" if row.get("line") else ""
    method, task = row.get("bm_method") or row.get("method"), row.get("bm_task") or row.get("task")
    where = f"the row {method}, {task}, {row.get('metric')}{line}"
    if not isinstance(name, str):
        raise RowError("no predictions", f"{where} names no predictions; run the evaluation again")
    path = Path(folder) / name
    if not path.is_file():
        raise RowError(
            "no predictions", f"{path}: no such file, but {where} names it; copy it there or run the evaluation again"
        )
    return path


def samples_of(row: Row, folder: str | Path) -> Predictions:
    """Read the predictions of a row of the results file in ``folder``; a :class:`RowError` says why it cannot."""
    return _read(predictions_path(row, folder))


def _read(path: Path, digest: str | None = None) -> Predictions:
    if digest not in (None, file_sha256(path)):
        text = f"{path}: changed since its rows were written; see medvlp benchmark verify"
        raise RowError("changed predictions", text)
    try:
        frame = pd.read_parquet(path)
        groups = tuple(frame["group"].astype(str))
        return Predictions(Samples.from_frame(frame), group_codes(groups), tuple(frame["id"].astype(str)), groups)
    except (OSError, ValueError, KeyError) as error:
        text = f"{path}: not readable as predictions ({str(error).splitlines()[0]}); run the evaluation again"
        raise RowError("unreadable predictions", text) from None


class Resampled:
    """Metrics of predictions in bootstrap resamples; each file is resampled once for all its metrics.

    Args:
        cache: folder that keeps them for the next call of the command; None: memory only.
    """

    def __init__(self, cache: str | Path | None = None) -> None:
        self.cache = None if cache is None else Path(cache)
        self._read_once = lru_cache(_PREDICTIONS)(_read)
        self._metrics: dict[str, dict[str, np.ndarray]] = {}  # the last used last

    def predictions(self, row: Row, folder: str | Path) -> Predictions:
        """Read the predictions of a row, as :func:`samples_of`, and check that they have not changed."""
        return self._read_once(predictions_path(row, folder), row.get("predictions_sha256"))

    def of(self, row: Row, metric: str, folder: str | Path, resamples: int) -> np.ndarray:
        """Compute a metric of a row of the results file in ``folder``, in each of R resamples of its patients.

        Returns:
            (R,) float32; NaN where the metric is undefined.

        Raises:
            ConfigError: the row's task has no such metric.
            DataError: the predictions cannot be read.
        """
        facts = {k: v for k, v in (row.get("notes") or {}).items() if k not in ("model", "data")}
        source = row.get("predictions_sha256") or str(predictions_path(row, folder).resolve())
        # another version may compute a metric in another way
        key = value_sha256([__version__, row["task"], source, facts, resamples, _SEED])
        metrics = self._metrics.pop(key, None) or self._load(key) or self._resample(key, row, folder, resamples)
        self._metrics[key] = metrics
        if len(self._metrics) > _RESAMPLED:
            self._metrics.pop(next(iter(self._metrics)))
        if metric not in metrics:
            raise ConfigError(f"{row['task']} has no metric {metric!r}; expected one of: {', '.join(metrics)}")
        return metrics[metric]

    def _resample(self, key: str, row: Row, folder: str | Path, resamples: int) -> dict[str, np.ndarray]:
        predictions = self.predictions(row, folder)
        drawn = distribution(measures_of(row), predictions.samples, predictions.codes, resamples, _SEED)
        metrics = {name: values.float().numpy() for name, values in drawn.items()}
        if self.cache is not None:
            with atomic_write(self.cache / f"{key}.npz") as file:
                np.savez(file, names=np.array(list(metrics)), values=np.stack(list(metrics.values())))
        return metrics

    def _load(self, key: str) -> dict[str, np.ndarray] | None:
        if self.cache is None or not (self.cache / f"{key}.npz").is_file():
            return None
        with np.load(self.cache / f"{key}.npz") as file:
            return dict(zip(file["names"].tolist(), file["values"], strict=True))
