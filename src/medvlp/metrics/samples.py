"""What an evaluation knows about each sample: gathered over batches and ranks, saved, and read back for metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from medvlp.errors import ConfigError, DataError

_LAYOUT = "medvlp.samples"
_RESERVED = ("id", "group", "index")


def first_of_each(index: Tensor) -> Tensor:
    """Positions that sort rows by index and keep the first of equal ones.

    Args:
        index: (N,) whole numbers.

    Returns:
        (n,) long, n at most N.
    """
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Means of the defined values of samples, for many weightings.

    Args:
        values: (N,), NaN where not defined.
        weights: (R, N) how often each sample counts.

    Returns:
        (R,) float64; NaN where no sample with a weight has a value.
    """
    weights, values = weights.double(), values.double()
    return (weights @ values.nan_to_num(nan=0.0)) / (weights @ (~values.isnan()).double())


@dataclass(frozen=True)
class Ragged:
    """Rows of which each sample has its own number: boxes, detections.

    Attributes:
        values: (M, ...) rows of all samples, in the samples' order.
        offsets: (N + 1,) long; sample i has rows ``offsets[i]`` to ``offsets[i + 1]``.
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "Ragged":
        """From N tensors (n_i, ...); at least one, for the shape of a row."""
        counts = torch.tensor([len(part) for part in parts], device=parts[0].device)
        return cls(torch.cat(list(parts)), offsets_of(counts))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, sample: int) -> Tensor:
        return self.values[self.offsets[sample] : self.offsets[sample + 1]]

    @property
    def counts(self) -> Tensor:
        """(N,) rows of each sample."""
        return self.offsets.diff()

    @property
    def owner(self) -> Tensor:
        """(M,) the sample of each row."""
        return torch.repeat_interleave(self.counts)

    def select(self, positions: Tensor) -> "Ragged":
        """The samples at (n,) long positions, in that order."""
        counts = self.counts[positions]
        offsets = offsets_of(counts)
        within = torch.arange(int(offsets[-1]), device=counts.device) - offsets[:-1].repeat_interleave(counts)
        return Ragged(self.values[self.offsets[positions].repeat_interleave(counts) + within], offsets)


def offsets_of(counts: Tensor) -> Tensor:
    """(N + 1,) cumulative sums of (N,) counts, starting with 0."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


class Samples:
    """A table with one row per sample of a dataset.

    Not a dataclass: torchmetrics looks into those that a metric computes, and makes scalars of a lone sample's values.

    Attributes:
        index: (N,) rows of the dataset, ascending, each once.
        columns: name to (N, ...).
        ragged: name to :class:`Ragged` over the same N samples.
    """

    def __init__(self, index: Tensor, columns: dict[str, Tensor], ragged: dict[str, Ragged] | None = None) -> None:
        self.index, self.columns, self.ragged = index, columns, ragged or {}

    def __repr__(self) -> str:
        shapes = [f"{name} {tuple(column.shape)}" for name, column in self.columns.items()]
        return f"Samples({len(self)}: {', '.join(shapes + [f'{name} (ragged)' for name in self.ragged])})"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> Tensor:
        """A plain column, or "index".

        Raises:
            DataError: there is no such column.
        """
        if name == "index":
            return self.index
        if name not in self.columns:
            raise DataError(
                f"these predictions have no column {name!r}, only {', '.join(sorted(self.columns)) or 'none'}; "
                "run the evaluation that saves it again"
            )
        return self.columns[name]

    def with_columns(self, **columns: Tensor) -> "Samples":
        """The same samples with more (or other) plain columns, each (N, ...)."""
        return Samples(self.index, {**self.columns, **columns}, self.ragged)

    def select(self, keep: Tensor) -> "Samples":
        """A part of the samples.

        Args:
            keep: (N,) bool, or (n,) long positions.

        Returns:
            The chosen samples in the order of ``keep``.
        """
        positions = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep
        return Samples(
            self.index[positions],
            {name: column[positions] for name, column in self.columns.items()},
            {name: rows.select(positions) for name, rows in self.ragged.items()},
        )

    def to(self, device: torch.device | str) -> "Samples":
        """The same on another device."""
        return Samples(
            self.index.to(device),
            {name: column.to(device) for name, column in self.columns.items()},
            {name: Ragged(rows.values.to(device), rows.offsets.to(device)) for name, rows in self.ragged.items()},
        )

    def to_frame(self, ids: Sequence[str], groups: Sequence[str]) -> pd.DataFrame:
        """A table that Parquet can hold: ``id``, ``group``, ``index``, then the columns and the ragged ones.

        Vectors, maps and ragged rows become nested lists. Shapes and types are kept in ``DataFrame.attrs``, which
        pandas writes into Parquet files and reads from them, so that :meth:`from_frame` gives back equal tensors.

        Args:
            ids: N identifiers of the samples.
            groups: N identifiers of the patients (or of what else is resampled together).

        Raises:
            ConfigError: the numbers of ids or groups are not N, or a column has a reserved name.
        """
        if not len(ids) == len(groups) == len(self):
            raise ConfigError(f"{len(self)} samples need as many ids and groups, got {len(ids)} and {len(groups)}")
        data: dict[str, Any] = {"id": list(ids), "group": list(groups), "index": self.index.cpu().numpy()}
        layout: dict[str, dict[str, Any]] = {}
        for name, column in self.columns.items():
            array = column.detach().cpu().numpy()
            layout[name] = {"ragged": False, "dtype": str(array.dtype), "shape": list(array.shape[1:])}
            data[name] = array if array.ndim == 1 else pd.Series([_nested(row) for row in array], dtype=object)
        for name, rows in self.ragged.items():
            array = rows.values.detach().cpu().numpy()
            layout[name] = {"ragged": True, "dtype": str(array.dtype), "shape": list(array.shape[1:])}
            cuts = rows.offsets.cpu().numpy()[1:-1]
            parts = np.split(array, cuts) if len(self) else []
            data[name] = pd.Series([_nested(part) for part in parts], dtype=object)
        if clash := set(layout) & set(_RESERVED):
            raise ConfigError(f"a column must not be called {', '.join(sorted(clash))}: rename it")
        frame = pd.DataFrame(data)
        frame.attrs[_LAYOUT] = layout
        return frame

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "Samples":
        """From a table made by :meth:`to_frame`, directly or through Parquet.

        Raises:
            DataError: the table does not know its layout.
        """
        layout = frame.attrs.get(_LAYOUT)
        if layout is None:
            raise DataError(
                "this table does not say how its columns are laid out: read predictions with pandas.read_parquet "
                "and keep DataFrame.attrs"
            )
        columns: dict[str, Tensor] = {}
        ragged: dict[str, Ragged] = {}
        for name, how in layout.items():
            dtype, shape = np.dtype(how["dtype"]), tuple(how["shape"])
            cells = frame[name].to_numpy()
            if how["ragged"]:
                parts = [_row(cell, dtype, (-1, *shape)) for cell in cells]
                counts = torch.tensor([len(part) for part in parts], dtype=torch.long)
                values = np.concatenate([np.empty((0, *shape), dtype), *parts])
                ragged[name] = Ragged(torch.from_numpy(values), offsets_of(counts))
            elif shape:
                rows = [_row(cell, dtype, shape) for cell in cells]
                columns[name] = torch.from_numpy(np.stack(rows) if rows else np.empty((0, *shape), dtype))
            else:
                columns[name] = torch.from_numpy(np.array(cells, dtype))
        return cls(torch.from_numpy(np.array(frame["index"], np.int64)), columns, ragged)


def _nested(row: np.ndarray) -> Any:
    """Lists of arrays: what pyarrow takes for nested lists, with the type of the values kept."""
    return row if row.ndim == 1 else [_nested(part) for part in row]


def _row(cell: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`_nested`, also for what Parquet makes of it; NaN comes back as None from integers' kin."""
    flat: list[Any] = []

    def visit(part: Any) -> None:
        if isinstance(part, np.ndarray) and part.dtype != object:
            flat.append(part.astype(dtype, copy=False).reshape(-1))
        else:
            for inner in part:
                visit(inner)

    visit(cell)
    values = np.concatenate(flat) if flat else np.empty(0, dtype)
    if -1 in shape and 0 in shape:  # rows without values: their number cannot be told from the values
        return np.empty((len(cell), *shape[1:]), dtype)
    return values.reshape(shape if values.size else tuple(max(side, 0) for side in shape))


class SampleStore(Metric):
    """Per-sample columns of an evaluation, each dataset row once, the same on every rank.

    A distributed sampler repeats rows to fill the last batch; the row index tells them apart, so they never count.
    Half precision becomes float32; other types stay. Every rank must have seen at least one sample (a distributed
    sampler sees to that), or the shapes of its columns are unknown.

    Args:
        columns: names of the plain columns.
        ragged: names of the columns with a different number of rows per sample.
        kwargs: as for ``torchmetrics.Metric``; ``compute_on_cpu=True`` keeps the columns in main memory.

    Raises:
        ConfigError: a name is reserved or comes twice.
    """

    full_state_update = False

    def __init__(self, columns: Sequence[str], ragged: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        names = [*columns, *ragged]
        if len(set(names)) < len(names) or set(names) & set(_RESERVED):
            raise ConfigError(f"column names must differ, and none may be {', '.join(_RESERVED)}: got {names}")
        self.column_names, self.ragged_names = tuple(columns), tuple(ragged)
        states = ["index_", *(f"column_{n}" for n in columns), *(f"{s}_{n}" for n in ragged for s in ("rows", "count"))]
        for state in states:
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, **values: Tensor | Sequence[Tensor]) -> None:
        """Adds a batch.

        Args:
            index: (B,) long, rows of the dataset.
            values: every column: (B, ...), or B tensors (n_i, ...) for a ragged one.

        Raises:
            ConfigError: a column is missing, unknown, or of another length.
        """
        if set(values) != {*self.column_names, *self.ragged_names}:
            raise ConfigError(
                f"columns {sorted(values)} were given, but {sorted((*self.column_names, *self.ragged_names))} belong"
            )
        for name, value in values.items():
            if len(value) != len(index):
                raise ConfigError(f"column {name!r} has {len(value)} entries for {len(index)} samples")
        if not len(index):
            return
        self._add("index_", index)
        for name in self.column_names:
            column = values[name]
            self._add(f"column_{name}", column if isinstance(column, Tensor) else torch.stack(list(column)))
        for name in self.ragged_names:
            rows = values[name]
            self._add(f"rows_{name}", torch.cat(list(rows)))
            self._add(f"count_{name}", torch.tensor([len(part) for part in rows], device=index.device))

    def _add(self, state: str, value: Tensor) -> None:
        value = value.detach()
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        getattr(self, state).append(value)

    def compute(self) -> Samples:
        """All samples, sorted by index, duplicates dropped; empty (0,) columns if there were none."""
        if not len(self._gathered("index_")):
            nothing = torch.zeros(0)
            ragged = {name: Ragged(nothing, torch.zeros(1, dtype=torch.long)) for name in self.ragged_names}
            return Samples(torch.zeros(0, dtype=torch.long), dict.fromkeys(self.column_names, nothing), ragged)
        index = self._gathered("index_")
        everything = Samples(
            index,
            {name: self._gathered(f"column_{name}") for name in self.column_names},
            {
                name: Ragged(self._gathered(f"rows_{name}"), offsets_of(self._gathered(f"count_{name}")))
                for name in self.ragged_names
            },
        )
        return everything.select(first_of_each(index))

    def _gathered(self, state: str) -> Tensor:
        parts: Tensor | list[Tensor] = getattr(self, state)  # a tensor after the ranks' lists were put together
        return parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.zeros(0)


class SampleMetric(Metric):
    """A task's measures as a metric: gathers samples of all ranks, each dataset row once, and scores them together.

    Subclasses name the columns and fill :meth:`update`.

    Args:
        measures: from samples to named values.
        columns: names of the plain columns.
        ragged: names of the ragged ones.
        options: keywords for ``measures``.
    """

    full_state_update = False

    def __init__(
        self,
        measures: Callable[..., dict[str, Tensor]],
        columns: Sequence[str],
        ragged: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.measures, self.options = measures, options
        self.store = SampleStore(columns, ragged)

    def update(self, preds: Any, target: Any, index: Tensor) -> None:
        """Adds a batch."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """All measures of the set."""
        return self.measures(self.store.compute(), **self.options)

    def reset(self) -> None:
        """Forgets all samples."""
        super().reset()
        self.store.reset()
