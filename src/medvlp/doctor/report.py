"""What the doctor says: plain data, for the terminal and for JSON alike."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
"""From harmless to harmful. A note is worth knowing, a warning worth a look, an error is absent or corrupt data."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what, for example "table train.csv"; the first word is the kind.
        level: how bad it is.
        found: what was found.
        expected: what should have been, "" where there is nothing to compare with.
        remedy: what to do, "" where nothing is to be done.
        items: ids, rows or files concerned, all of them; never report text.
    """

    name: str
    level: Level
    found: str
    expected: str = ""
    remedy: str = ""
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskState:
    """Whether a task can run.

    Args:
        runs: whether its records can be read, and there are any.
        records: their number, over all splits.
        reason: why it cannot run.
    """

    runs: bool
    records: int = 0
    reason: str = ""


@dataclass(frozen=True)
class SplitState:
    """Whether a split can be made.

    Args:
        made: whether it can.
        default: whether it is the one that is taken if none is named.
        counts: records per part.
        sha256: first 12 digits of the hash of each part's ids.
        verified: the published numbers are known, and all of them agree.
        leaks: what two parts share.
        reason: why it cannot be made.
    """

    made: bool
    default: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    leaks: dict[str, int] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Images:
    """The image files that records name.

    Args:
        files: how many there are.
        sizes: "width x height" to number, the most frequent first.
        kinds: format, mode, bits per channel and photometric interpretation to number.
        monochrome1: files whose bright is dark, which the reader inverts.
        unnamed: image files below the image folders that no record names.
        decoded: whether every pixel was decoded.
    """

    files: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    monochrome1: int = 0
    unnamed: int = 0
    decoded: bool = False


@dataclass
class Diagnosis:
    """All that the doctor found about a corpus with one set of options.

    Args:
        dataset: name of the corpus.
        title: its own name.
        root: its folder.
        options: options that it was read with, beside the defaults.
        phantom: whether it is a phantom, which is not held to the counts of a release.
        checks: in the order in which they were made.
        tasks: task to its state.
        splits: name of a split to its state.
        images: the image files.
        next: commands to type next.
    """

    dataset: str
    title: str
    root: Path
    options: dict[str, str] = field(default_factory=dict)
    phantom: bool = False
    checks: list[Check] = field(default_factory=list)
    tasks: dict[str, TaskState] = field(default_factory=dict)
    splits: dict[str, SplitState] = field(default_factory=dict)
    images: Images = field(default_factory=Images)
    next: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing that is needed is absent or corrupt."""
        return not any(check.level == "error" for check in self.checks)

    def at(self, level: Level) -> Iterator[Check]:
        """The checks of one level."""
        return (check for check in self.checks if check.level == level)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; the keys are those of the fields, and ``ok`` and ``levels`` (level to number)."""
        levels = {level: sum(1 for _ in self.at(level)) for level in LEVELS}
        return {**asdict(self), "root": str(self.root), "ok": self.ok, "levels": levels}
