"""The data file of splits: what each is, who uses it, and its numbers for a known release."""

import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from medvlp.errors import ConfigError, check_choice
from medvlp.splits.types import SplitInput


@dataclass(frozen=True)
class Release:
    """The size of a release, by which it is recognised."""

    name: str
    pools: dict[str, int] = field(default_factory=dict)  # records per released part
    records: int | None = None  # in total, where the release has no parts
    rows: int | None = None  # of its label table, where they are not the records

    def differences(self, inputs: SplitInput, pools: tuple[str, ...]) -> list[str]:
        """List how the input differs from the release in the parts named."""
        pairs = [(f"records of {p}", self.pools.get(p, 0), int(inputs.in_pool(p).sum())) for p in pools]
        if self.records is not None:
            pairs.append(("records", self.records, len(inputs)))
        if self.rows is not None and inputs.rows is not None:
            pairs.append(("label rows", self.rows, len(inputs.rows)))
        return [f"{what}: expected {e:,}, found {f:,}" for what, e, f in pairs if e != f]


@dataclass(frozen=True)
class Expected:
    """What a split gives for one release, by part; what is not known is absent."""

    release: str = ""  # "" for any
    seed: int | None = None  # None for any
    patients: int | None = None  # distinct ones in the pools of the split when the numbers were taken
    counts: dict[str, int] = field(default_factory=dict)  # records
    rows: dict[str, int] = field(default_factory=dict)  # of the label table
    frontal: dict[str, int] = field(default_factory=dict)  # records that are no laterals
    positives: dict[str, int] = field(default_factory=dict)  # records with the target label
    sha256: dict[str, str] = field(default_factory=dict)  # of the sorted ids
    leaks: dict[str, int] | None = None  # what two parts share


@dataclass(frozen=True)
class SplitInfo:
    """A split in words and numbers."""

    corpus: str
    name: str
    title: str
    recipe: str  # how the members are found
    source: str  # where the recipe comes from: paper, code, or both
    used_by: str = ""
    exact: str = ""  # "members" if the recipe gives the published members, "sizes" if only their number is known
    seeded: bool = False  # whether the seed of the call decides the members; other recipes fix their own
    leak_note: str = ""  # what is known about images and patients shared between parts
    needs_lists: tuple[str, ...] = ()  # files of the authors without which the split cannot be made
    repository: str = ""  # where these are published
    pools: tuple[str, ...] = ()  # released parts that the split draws from
    expected: tuple[Expected, ...] = ()

    def expected_for(self, release: str, seed: int) -> Expected | None:
        """Return the numbers for a release ("" if unknown) and a seed, or None if none are recorded."""
        return next((e for e in self.expected if e.release in ("", release) and e.seed in (None, seed)), None)


@cache
def _corpora() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("expected.json").read_text("utf-8")
    corpora: dict[str, dict[str, Any]] = json.loads(text)["corpora"]
    return corpora


def split_names(corpus: str) -> tuple[str, ...]:
    """Return the names of the splits of a corpus; the first is the default.

    Raises:
        ConfigError: an unknown corpus.
    """
    check_choice("corpus", corpus, _corpora())
    return tuple(_corpora()[corpus]["splits"])


def releases(corpus: str) -> tuple[Release, ...]:
    """Return the releases of a corpus that are known by their size."""
    return tuple(Release(name, **entry) for name, entry in _corpora()[corpus]["releases"].items())


def describe(corpus: str, name: str) -> SplitInfo:
    """Return what a split is and its recorded numbers.

    Raises:
        ConfigError: an unknown corpus or split.
    """
    if name not in split_names(corpus):
        raise ConfigError(f"{corpus} has no split {name!r}; expected one of: {', '.join(split_names(corpus))}")
    splits = _corpora()[corpus]["splits"]
    entry: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in splits[name].items()}
    # the hash of a part whose file is not public is null
    known = ({**e, "sha256": {p: h for p, h in e.get("sha256", {}).items() if h}} for e in entry.pop("expected", ()))
    return SplitInfo(corpus, name, **entry, expected=tuple(Expected(**numbers) for numbers in known))
