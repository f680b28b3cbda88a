"""Metrics of saved predictions in bootstrap resamples of their patients, kept for the next table."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medvlp._version import __version__
from medvlp.benchmark.recompute import Predictions, measures_of, predictions_path, samples_of
from medvlp.errors import ConfigError, DataError
from medvlp.metrics.bootstrap import distribution
from medvlp.store import atomic_write, sha256_of

Row = Mapping[str, Any]
"""A row of a results file, as :func:`medvlp.benchmark.rows.records` gives it."""

_KEPT = 2048
"""Files whose resampled metrics stay in memory."""
_OPEN = 64
"""Files whose predictions do."""


class Resampled:
    """Metrics of predictions in bootstrap resamples, each file resampled once for all its metrics.

    Args:
        cache: folder where they are kept from one call of the command to the next; None: memory alone.
    """

    def __init__(self, cache: str | Path | None = None) -> None:
        self.cache = None if cache is None else Path(cache)
        self._predictions: OrderedDict[tuple[str, str], Predictions] = OrderedDict()
        self._found: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()

    def predictions(self, row: Row, folder: str | Path) -> Predictions:
        """The predictions behind a row; see :func:`~medvlp.benchmark.recompute.samples_of`.

        Raises:
            DataError: there are none, or they are not those that the row was written with.
        """
        key = (str(Path(folder) / str(row.get("predictions"))), str(row.get("predictions_sha256")))
        if key not in self._predictions:
            path = predictions_path(row, folder)
            if row.get("predictions_sha256") not in (None, sha256_of(path)):
                raise DataError(f"{path}: changed since its rows were written; see medvlp benchmark verify")
            self._predictions[key] = samples_of(row, folder)
            if len(self._predictions) > _OPEN:
                self._predictions.popitem(last=False)
        return self._predictions[key]

    def of(self, row: Row, metric: str, folder: str | Path, resamples: int, seed: int) -> np.ndarray:
        """A metric in each resample.

        Args:
            row: of a results file.
            metric: its name.
            folder: that of the results file.
            resamples: R.
            seed: equal seeds give equal resamples of equal patients.

        Returns:
            (R,) float32; NaN where it is not defined.

        Raises:
            ConfigError: the row's task has no such metric.
            DataError: from the predictions.
        """
        facts = {k: v for k, v in (row.get("notes") or {}).items() if k not in ("model", "data")}
        # With the version, since they may compute a metric otherwise.
        source = row.get("predictions_sha256") or str(predictions_path(row, folder).resolve())
        key = sha256_of([__version__, row["task"], source, facts, resamples, seed])
        if key in self._found:
            self._found.move_to_end(key)
        else:
            self._found[key] = self._read(key) or self._resample(key, row, folder, resamples, seed)
            if len(self._found) > _KEPT:
                self._found.popitem(last=False)
        if metric not in self._found[key]:
            raise ConfigError(f"{row['task']} has no metric {metric!r}; it has {', '.join(self._found[key])}")
        return self._found[key][metric]

    def _resample(self, key: str, row: Row, folder: str | Path, resamples: int, seed: int) -> dict[str, np.ndarray]:
        made = self.predictions(row, folder)
        drawn = distribution(measures_of(row), made.samples, made.codes, resamples, seed)
        found = {name: values.float().numpy() for name, values in drawn.items()}
        if self.cache is not None:
            with atomic_write(self.cache / f"{key}.npz") as file:
                np.savez(file, names=np.array(list(found)), values=np.stack(list(found.values())))
        return found

    def _read(self, key: str) -> dict[str, np.ndarray] | None:
        if self.cache is None or not (self.cache / f"{key}.npz").is_file():
            return None
        with np.load(self.cache / f"{key}.npz") as file:
            return dict(zip(file["names"].tolist(), file["values"], strict=True))
