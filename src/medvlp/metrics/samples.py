"""Per-sample results of an evaluation: gathered over batches and ranks, saved, and read back to compute metrics."""

from collections.abc import Mapping, Sequence
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


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Average (N,) values, NaN where undefined, with (R, N) weights: (R,) float64, NaN without a value to average."""
    weights, values = weights.double(), values.double()
    return (weights @ values.nan_to_num(nan=0.0)) / (weights @ (~values.isnan()).double())


@dataclass(frozen=True)
class Ragged:
    """A column with a different number of rows per sample, such as boxes.

    Attributes:
        values: (M, ...) rows of all samples, in the order of the samples.
        offsets: (N + 1,) long; sample i has rows ``offsets[i]`` to ``offsets[i + 1]``.
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "Ragged":
        """Concatenate N tensors (n_i, ...), N at least 1."""
        counts = torch.tensor([len(part) for part in parts], device=parts[0].device)
        return cls.from_counts(torch.cat(list(parts)), counts)

    @classmethod
    def from_counts(cls, values: Tensor, counts: Tensor) -> "Ragged":
        """Split (M, ...) rows by the (N,) numbers of rows of each sample."""
        return cls(values, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))

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
        """(M,) sample of each row."""
        return torch.repeat_interleave(self.counts)

    @property
    def position(self) -> Tensor:
        """(M,) position of each row within its sample."""
        return torch.arange(len(self.values), device=self.offsets.device) - self.offsets[:-1][self.owner]

    def select(self, positions: Tensor) -> "Ragged":
        """Return the samples at (n,) long positions, in that order."""
        rows = Ragged.from_counts(self.values, self.counts[positions])
        within = torch.arange(int(rows.offsets[-1]), device=self.offsets.device) - rows.offsets[:-1][rows.owner]
        return Ragged(self.values[self.offsets[positions][rows.owner] + within], rows.offsets)


class Samples:
    """A table with one row per sample of a dataset.

    Not a dataclass: torchmetrics walks dataclasses that a metric computes and makes scalars of single-sample columns.

    Attributes:
        index: (N,) rows of the dataset, ascending, without repetition.
        columns: name to (N, ...).
        ragged: name to :class:`Ragged` over the same N samples.
    """

    def __init__(self, index: Tensor, columns: Mapping[str, Tensor], ragged: dict[str, Ragged] | None = None) -> None:
        self.index, self.columns, self.ragged = index, dict(columns), ragged or {}

    def __repr__(self) -> str:
        shapes = [f"{name} {tuple(column.shape)}" for name, column in self.columns.items()]
        return f"Samples({len(self)}: {', '.join(shapes + [f'{name} (ragged)' for name in self.ragged])})"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> Tensor:
        if name == "index":
            return self.index
        if name not in self.columns:
            raise DataError(
                f"these predictions have no column {name!r}, only {', '.join(sorted(self.columns)) or 'none'}; "
                "run the evaluation again to save it"
            )
        return self.columns[name]

    def with_columns(self, **columns: Tensor) -> "Samples":
        """Add or replace plain columns, each (N, ...)."""
        return Samples(self.index, {**self.columns, **columns}, self.ragged)

    def select(self, keep: Tensor) -> "Samples":
        """Return the samples that ``keep``, (N,) bool or (n,) long positions, chooses, in its order."""
        positions = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep
        return Samples(
            self.index[positions],
            {name: column[positions] for name, column in self.columns.items()},
            {name: rows.select(positions) for name, rows in self.ragged.items()},
        )

    def to(self, device: torch.device | str) -> "Samples":
        """Move all columns to a device."""
        return Samples(
            self.index.to(device),
            {name: column.to(device) for name, column in self.columns.items()},
            {name: Ragged(rows.values.to(device), rows.offsets.to(device)) for name, rows in self.ragged.items()},
        )

    def to_frame(self, ids: Sequence[str], groups: Sequence[str]) -> pd.DataFrame:
        """Convert to a table that Parquet can hold: ``id``, ``group``, ``index``, then plain and ragged columns.

        ``group`` identifies the patient (the unit of resampling). Multi-dimensional and ragged columns become nested
        lists. Shapes and dtypes go to ``DataFrame.attrs``, which pandas stores in Parquet files, so that
        :meth:`from_frame` restores equal tensors.
        """
        if not len(ids) == len(groups) == len(self):
            raise ConfigError(f"{len(self)} samples need as many ids and groups, got {len(ids)} and {len(groups)}")
        if clash := {*self.columns, *self.ragged} & set(_RESERVED):
            raise ConfigError(f"reserved column names: {', '.join(sorted(clash))}; rename them")
        data: dict[str, Any] = {"id": list(ids), "group": list(groups), "index": self.index.cpu().numpy()}
        layout: dict[str, dict[str, Any]] = {}
        for name, values in [*self.columns.items(), *((name, rows.values) for name, rows in self.ragged.items())]:
            array = values.detach().cpu().numpy()
            ragged = name in self.ragged
            layout[name] = {"ragged": ragged, "dtype": str(array.dtype), "shape": list(array.shape[1:])}
            cells: Any = array
            if ragged:
                cells = np.split(array, self.ragged[name].offsets.cpu().numpy()[1:-1]) if len(self) else []
            nested = ragged or array.ndim > 1
            data[name] = pd.Series([_nested(cell) for cell in cells], dtype=object) if nested else array
        frame = pd.DataFrame(data)
        frame.attrs[_LAYOUT] = layout
        return frame

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "Samples":
        """Restore samples from a table of :meth:`to_frame`, directly or through Parquet."""
        layout = frame.attrs.get(_LAYOUT)
        if layout is None:
            raise DataError(
                "the table does not describe the layout of its columns; read predictions with pandas.read_parquet and "
                "keep DataFrame.attrs"
            )
        columns: dict[str, Tensor] = {}
        ragged: dict[str, Ragged] = {}
        for name, spec in layout.items():
            dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
            cells = frame[name].to_numpy()
            empty = np.empty((0, *shape), dtype)
            if spec["ragged"]:
                parts = [_row(cell, dtype, (-1, *shape)) for cell in cells]
                counts = torch.tensor([len(part) for part in parts], dtype=torch.long)
                ragged[name] = Ragged.from_counts(torch.from_numpy(np.concatenate([empty, *parts])), counts)
            elif shape:
                columns[name] = torch.from_numpy(
                    np.stack([_row(c, dtype, shape) for c in cells]) if len(cells) else empty
                )
            else:
                columns[name] = torch.from_numpy(np.array(cells, dtype))
        return cls(torch.from_numpy(np.array(frame["index"], np.int64)), columns, ragged)


def _nested(row: np.ndarray) -> Any:
    # Lists of arrays: pyarrow converts them to nested lists and keeps the dtype of the values.
    return row if row.ndim == 1 else [_nested(part) for part in row]


def _row(cell: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Invert :func:`_nested`, also after Parquet, which nests object arrays."""

    def flat(part: Any) -> list[np.ndarray]:
        if isinstance(part, np.ndarray) and part.dtype != object:
            return [part.astype(dtype, copy=False).reshape(-1)]
        return [values for inner in part for values in flat(inner)]

    values = np.concatenate([np.empty(0, dtype), *flat(cell)])
    if -1 in shape and 0 in shape:  # the number of rows without values cannot be inferred from the values
        return np.empty((len(cell), *shape[1:]), dtype)
    return values.reshape(shape if values.size else tuple(max(side, 0) for side in shape))


class SampleStore(Metric):
    """Gather per-sample columns over batches and ranks, each row of the dataset once.

    A distributed sampler repeats rows to fill the last batch; duplicates are recognised by their row index and dropped.
    Half precision becomes float32; other dtypes are kept. Every rank must have seen at least one sample (a distributed
    sampler ensures it), because otherwise the shapes of its columns are unknown.

    Args:
        columns: names of the plain columns.
        ragged: names of the columns with a different number of rows per sample.
        kwargs: as for ``torchmetrics.Metric``; ``compute_on_cpu=True`` keeps the columns in main memory.
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
        """Add a batch: (B,) rows of the dataset, and every column, (B, ...), or B tensors (n_i, ...) if ragged."""
        expected = {*self.column_names, *self.ragged_names}
        if set(values) != expected:
            raise ConfigError(f"expected the columns {sorted(expected)}, got {sorted(values)}")
        for name, value in values.items():
            if len(value) != len(index):
                raise ConfigError(f"column {name!r} has {len(value)} entries for {len(index)} samples")
        if not len(index):
            return
        self._append("index_", index)
        for name in self.column_names:
            column = values[name]
            self._append(f"column_{name}", column if isinstance(column, Tensor) else torch.stack(list(column)))
        for name in self.ragged_names:
            rows = values[name]
            self._append(f"rows_{name}", torch.cat(list(rows)))
            self._append(f"count_{name}", torch.tensor([len(part) for part in rows], device=index.device))

    def _append(self, state: str, value: Tensor) -> None:
        half = value.dtype in (torch.float16, torch.bfloat16)
        getattr(self, state).append(value.detach().float() if half else value.detach())

    def compute(self) -> Samples:
        """Return all samples in the order of the dataset; (0,) columns if there are none."""
        index = self._gathered("index_").long()
        columns = {name: self._gathered(f"column_{name}") for name in self.column_names}
        ragged = {
            name: Ragged.from_counts(self._gathered(f"rows_{name}"), self._gathered(f"count_{name}").long())
            for name in self.ragged_names
        }
        first = torch.from_numpy(np.unique(index.cpu().numpy(), return_index=True)[1])
        return Samples(index, columns, ragged).select(first.to(index.device))

    def _gathered(self, state: str) -> Tensor:
        parts: Tensor | list[Tensor] = getattr(self, state)  # a tensor after synchronisation over ranks
        return parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.zeros(0)


def sample_weights(samples: Samples, weights: Tensor | None) -> Tensor:
    """Return (R, N) float64 weights; None counts each sample once, R = 1."""
    weights = torch.ones(1, len(samples), device=samples.index.device) if weights is None else weights
    return weights.double()


def named_values(values: Mapping[str, Tensor], weights: Tensor | None) -> dict[str, Tensor]:
    """Return (R,) values as they are if samples were weighted, as scalars otherwise."""
    return {name: value if weights is not None else value.reshape(()) for name, value in values.items()}
