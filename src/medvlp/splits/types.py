"""Inputs and results of a split."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from medvlp.errors import ConfigError, DataError

_VALIDATE = ("validate", "valid", "val", "validation")


def check_seed(seed: int) -> None:
    """Raise unless numpy's legacy generator, which the published recipes draw with, takes the seed."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"the seed of a split must lie in [0, 2^32), not {seed}")


class SplitLeakWarning(UserWarning):
    """Two parts of a split share images or patients."""


@dataclass(frozen=True, eq=False)
class SplitInput:
    """What a recipe sees: N records of a corpus in the documented order of the corpus.

    Args:
        ids: (N,) str, image ids as released, each once.
        patients: (N,) str, what must stay together; the id where the corpus names no patient.
        pool: (N,) str, the released part of a record: "train", "valid", "validate", "test", "dev", "train_val" or "".
        views: (N,) str, "PA", "AP", "LATERAL", …; "" unknown.
        frontal: (N,) bool, no lateral.
        labels: N rows, raw labels by name: 1 present, 0 absent, −1 uncertain, NaN not mentioned.
        rows: (R,) int64, for each row of the released label table, in the order of the file, its record; None for one
            row per record in order.
        hashes: (N,) str, content hash of each image, "" unknown. Equal images stay together in our own split.

    Raises:
        DataError: the lengths differ, an id occurs twice, or ``rows`` points outside the records.
    """

    ids: np.ndarray
    patients: np.ndarray
    pool: np.ndarray
    views: np.ndarray
    frontal: np.ndarray
    labels: pd.DataFrame
    rows: np.ndarray | None = None
    hashes: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name in ("patients", "pool", "views", "frontal", "labels", "hashes"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise DataError(f"a split input has {n} ids but {len(value)} entries in {name}")
        repeated = np.flatnonzero(pd.Index(self.ids).duplicated())
        if len(repeated):
            raise DataError(
                f"{len(repeated)} ids occur twice in a split input, the first is {self.ids[repeated[0]]} (record "
                f"{repeated[0]}); give each record an id of its own"
            )
        if self.rows is not None and len(self.rows) and (np.min(self.rows) < 0 or np.max(self.rows) >= n):
            raise DataError(f"the label rows of a split input point outside its {n} records")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_frontal(self) -> np.ndarray:
        """(N,) bool, no lateral."""
        return np.asarray(self.frontal, dtype=bool)

    def in_pool(self, *pools: str) -> np.ndarray:
        """(N,) bool, records of the released parts named; "val" and "valid" count as "validate"."""
        names = {*pools, *(_VALIDATE if set(pools) & set(_VALIDATE) else ())}
        return pd.Series(self.pool, dtype=object).isin(names).to_numpy()

    @property
    def has_patients(self) -> bool:
        """Whether the corpus names patients, so that they are more than another word for images."""
        return bool((np.asarray(self.patients, dtype=object) != np.asarray(self.ids, dtype=object)).any())


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a split.

    Args:
        records: int64 indices into the input, each once, in the order of the published list or call.
        rows: int64 rows of the released label table that belong to the part, where a split tears the rows of one
            record apart (SIIM); else None.
    """

    records: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, eq=False)
class Split:
    """A split of a corpus.

    Args:
        corpus: its corpus.
        name: its name.
        parts: "train", "validate" and "test"; those without a record are missing.
        counts: records per part.
        sha256: per part, SHA-256 of its ids, sorted and joined by newlines.
        leaks: what two parts share, for example ``{"images train&test": 154}``; empty if they share nothing.
        digest: one hash over corpus, name, seed and members, for result rows.
        verified: whether numbers are recorded for the release and all of them agree.
        seed: the seed that the members depend on; None where the recipe fixes its own.
        release: the release that the input was recognised as, "" if unknown.
        left_out: int64 records that are in no part (another view, another pool, …).
    """

    corpus: str
    name: str
    parts: dict[str, Part]
    counts: dict[str, int]
    sha256: dict[str, str]
    leaks: dict[str, int]
    digest: str
    verified: bool
    seed: int | None = None
    release: str = ""
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
