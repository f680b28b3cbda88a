"""Inputs and results of a split."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from medvlp.errors import ConfigError, DataError

_VALIDATE = {"validate", "valid", "val", "validation"}


def check_seed(seed: int) -> None:
    """Raise unless numpy's legacy generator, which the published recipes draw with, takes the seed."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"the seed of a split must lie in [0, 2^32), not {seed}")


class SplitLeakWarning(UserWarning):
    """Two parts of a split share images or patients."""


@dataclass(frozen=True, eq=False)
class SplitInput:
    """What a recipe sees: N records of a corpus in the documented order of the corpus."""

    ids: np.ndarray  # (N,) str, image ids as released, each once
    patients: np.ndarray  # (N,) str, what must stay together; the id where the corpus names no patient
    pool: np.ndarray  # (N,) str, released part: "train", "valid", "validate", "test", "dev", "train_val" or ""
    views: np.ndarray  # (N,) str, "PA", "AP", "LATERAL", …; "" unknown
    frontal: np.ndarray  # (N,) bool, no lateral
    labels: pd.DataFrame  # N rows, raw labels by name: 1 present, 0 absent, −1 uncertain, NaN not mentioned
    # (R,) int64, for each row of the released label table, in the order of the file, its record; None for one row per
    # record in order
    rows: np.ndarray | None = None
    hashes: np.ndarray | None = None  # (N,) str, content hash, "" unknown; equal images stay together in our own split

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
        """``frontal`` as a bool array."""
        return np.asarray(self.frontal, dtype=bool)

    def in_pool(self, *pools: str) -> np.ndarray:
        """(N,) bool, records of the released parts named; "val" and "valid" count as "validate"."""
        names = {*pools} | (_VALIDATE if _VALIDATE & {*pools} else set())
        return pd.Series(self.pool, dtype=object).isin(names).to_numpy()

    @property
    def has_patients(self) -> bool:
        """Whether the corpus names patients, so that they are more than another word for images."""
        return bool((np.asarray(self.patients, dtype=object) != np.asarray(self.ids, dtype=object)).any())


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a split."""

    records: np.ndarray  # int64 indices into the input, each once, in the order of the published list or call
    rows: np.ndarray | None = None  # int64, of the label table, where a split tears a record's rows apart (SIIM)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, eq=False)
class Split:
    """A split of a corpus."""

    corpus: str
    name: str
    parts: dict[str, Part]  # "train", "validate" and "test"; those without a record are missing
    counts: dict[str, int]  # records per part
    sha256: dict[str, str]  # per part, SHA-256 of its ids, sorted and joined by newlines
    leaks: dict[str, int]  # what two parts share, for example {"images train&test": 154}
    digest: str  # one hash over corpus, name, seed and members, for result rows
    verified: bool  # whether numbers are recorded for the release and all of them agree
    seed: int | None = None  # that the members depend on; None where the recipe fixes its own
    release: str = ""  # that the input was recognised as, "" if unknown
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # records that are in no part
