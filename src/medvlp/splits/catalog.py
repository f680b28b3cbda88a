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
    """The size of a release, by which it is recognised.

    Args:
        name: what it is called.
        pools: records per released part.
        records: records in total, where the release has no parts.
        rows: rows of its label table, where they are not the records.
    """

    name: str
    pools: dict[str, int] = field(default_factory=dict)
    records: int | None = None
    rows: int | None = None

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
    """What a split gives for one release, by part; what is not known is absent.

    Args:
        release: the release, "" for any.
        seed: the seed, None for any.
        patients: distinct patients in the pools of the split when the numbers were taken.
        counts: records.
        rows: rows of the label table.
        frontal: records that are no laterals.
        positives: records with the target label.
        sha256: hash of the sorted ids.
        leaks: what two parts share.
    """

    release: str = ""
    seed: int | None = None
    patients: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    frontal: dict[str, int] = field(default_factory=dict)
    positives: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    leaks: dict[str, int] | None = None


@dataclass(frozen=True)
class SplitInfo:
    """A split in words and numbers.

    Args:
        corpus: its corpus.
        name: its name.
        title: one line.
        recipe: how the members are found.
        source: where the recipe comes from: paper, code, or both.
        used_by: whose results it belongs to.
        exact: "members" if the recipe gives the published members, "sizes" if only their number is known.
        seeded: whether the seed of the call decides the members; other recipes fix their own.
        leak_note: what is known about images and patients shared between parts.
        needs_lists: files of the authors without which the split cannot be made.
        repository: where these are published.
        pools: released parts that the split draws from.
        expected: the recorded numbers.
    """

    corpus: str
    name: str
    title: str
    recipe: str
    source: str
    used_by: str = ""
    exact: str = ""
    seeded: bool = False
    leak_note: str = ""
    needs_lists: tuple[str, ...] = ()
    repository: str = ""
    pools: tuple[str, ...] = ()
    expected: tuple[Expected, ...] = ()

    def expected_for(self, release: str, seed: int) -> Expected | None:
        """Return the numbers for a release ("" if unknown) and a seed, or None if none are recorded."""
        return next((e for e in self.expected if e.release in ("", release) and e.seed in (None, seed)), None)


@cache
def _corpora() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("expected.json").read_text("utf-8")
    corpora: dict[str, dict[str, Any]] = json.loads(text)["corpora"]
    return corpora


def _corpus(corpus: str) -> dict[str, Any]:
    check_choice("corpus", corpus, _corpora())
    return _corpora()[corpus]


def split_names(corpus: str) -> tuple[str, ...]:
    """Return the names of the splits of a corpus; the first is the default.

    Raises:
        ConfigError: an unknown corpus.
    """
    return tuple(_corpus(corpus)["splits"])


def releases(corpus: str) -> tuple[Release, ...]:
    """Return the releases of a corpus that are known by their size."""
    return tuple(Release(name, **entry) for name, entry in _corpus(corpus)["releases"].items())


def describe(corpus: str, name: str) -> SplitInfo:
    """Return what a split is and its recorded numbers.

    Raises:
        ConfigError: an unknown corpus or split.
    """
    splits = _corpus(corpus)["splits"]
    if name not in splits:
        raise ConfigError(f"{corpus} has no split {name!r}; expected one of: {', '.join(splits)}")
    entry: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in splits[name].items()}
    # the hash of a part whose file is not public is null
    known = ({**e, "sha256": {p: h for p, h in e.get("sha256", {}).items() if h}} for e in entry.pop("expected", ()))
    return SplitInfo(corpus, name, **entry, expected=tuple(Expected(**numbers) for numbers in known))
