"""A row's numbers once more: its task's own measures on the predictions that were saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from medvlp.errors import DataError
from medvlp.metrics.bootstrap import Measures, group_codes
from medvlp.metrics.samples import Samples
from medvlp.tasks.catalog import TASKS


class FactsMissingError(DataError):
    """A row was written before its task recorded all that its metrics depend on."""


@dataclass(frozen=True)
class Predictions:
    """What one run predicted.

    Attributes:
        samples: N samples.
        codes: (N,) long, equal for samples of a patient: what a bootstrap draws.
        ids: identifiers of the samples.
        groups: identifiers of the patients.
    """

    samples: Samples
    codes: Tensor
    ids: tuple[str, ...]
    groups: tuple[str, ...]

    def same_samples(self, other: "Predictions") -> bool:
        """Whether another run scored the same samples of the same patients, in the same order."""
        return self.ids == other.ids and self.groups == other.groups


def measures_of(row: Mapping[str, Any]) -> Measures:
    """The function that gave a row its number, by the row alone.

    Args:
        row: of a results file.

    Returns:
        From samples (and weights, (R, N)) to all metrics of the row's task.

    Raises:
        FactsMissingError: the row's notes lack something.
        DataError: there is no such task.
    """
    if row["task"] not in TASKS:
        raise DataError(f"there is no task {row['task']!r} in this version of medvlp; there are {', '.join(TASKS)}")
    try:
        return TASKS[row["task"]].load().measures_from(row.get("notes") or {})
    except KeyError as error:
        raise FactsMissingError(
            f"written before facts were recorded: its notes have no {error.args[0]!r}; run medvlp test again"
        ) from None


def predictions_path(row: Mapping[str, Any], folder: str | Path) -> Path:
    """The file with a row's predictions.

    Args:
        row: of a results file.
        folder: that of the results file.

    Raises:
        DataError: the row names none, or there is no such file.
    """
    name = row.get("predictions")
    if not isinstance(name, str):
        raise DataError(f"{_where(row)} names no predictions; run the evaluation again")
    path = Path(folder) / name
    if not path.is_file():
        raise DataError(f"{path}: no such file, but {_where(row)} names it; copy it there or run the evaluation again")
    return path


def samples_of(row: Mapping[str, Any], folder: str | Path) -> Predictions:
    """The predictions behind a row.

    Args:
        row: of a results file.
        folder: that of the results file, to which ``predictions`` is relative.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    path = predictions_path(row, folder)
    try:
        frame = pd.read_parquet(path)
        groups = tuple(frame["group"].astype(str))
        return Predictions(Samples.from_frame(frame), group_codes(groups), tuple(frame["id"].astype(str)), groups)
    except (OSError, ValueError, KeyError) as error:
        line = str(error).splitlines()[0]
        raise DataError(f"{path}: not readable as predictions ({line}); run the evaluation again") from None


def _where(row: Mapping[str, Any]) -> str:
    line = f", line {row['line']}" if row.get("line") else ""
    method, task = row.get("bm_method") or row.get("method"), row.get("bm_task") or row.get("task")
    return f"the row {method}, {task}, {row.get('metric')}{line}"
