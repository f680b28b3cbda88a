"""What the doctor finds: plain data, for the terminal and for JSON alike."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
"""From harmless to harmful. A note is worth knowing, a warning worth a look, an error is absent or corrupt data."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Args:
        name: what, for example "table train.csv"; the first word is the kind.
        level: how bad it is.
        found: what was found.
        expected: what should have been found, "" if there is nothing to compare with.
        remedy: what to do about it.
        items: ids, rows or files concerned, all of them; never report text.
    """

    name: str
    level: Level
    found: str
    expected: str = ""
    remedy: str = ""
    items: tuple[str, ...] = ()


Check = Finding  # the name until 0.2


@dataclass(frozen=True)
class TaskState:
    """Whether a task can run: its number of records over all splits, or the reason why it cannot."""

    runs: bool
    records: int = 0
    reason: str = ""


@dataclass(frozen=True)
class SplitState:
    """Whether a split can be made: counts and hashes (12 digits) of its parts, or the reason why it cannot.

    ``verified`` says that the published numbers are known and all of them agree; ``leaks`` is what two parts share.
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
    """Numbers of the image files that records name.

    ``sizes`` ("width x height") and ``kinds`` (format, mode, bits per channel, photometric interpretation) are in the
    order of frequency; ``monochrome1`` files are stored dark on bright; ``unnamed`` files are those that no record
    names; ``decoded`` says whether every pixel was decoded.
    """

    files: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    monochrome1: int = 0
    unnamed: int = 0
    decoded: bool = False


@dataclass
class Diagnosis:
    """All findings about a corpus read with one set of options.

    Args:
        dataset: name of the corpus.
        title: the name that its authors give it.
        root: its folder.
        options: options other than the defaults.
        phantom: whether it is a phantom, which need not have the counts of a release.
        checks: the findings, in the order of the checks.
        tasks: state of each task.
        splits: state of each split.
        images: summary of the image files.
        next: commands to type next.
    """

    dataset: str
    title: str
    root: Path
    options: dict[str, str] = field(default_factory=dict)
    phantom: bool = False
    checks: list[Finding] = field(default_factory=list)
    tasks: dict[str, TaskState] = field(default_factory=dict)
    splits: dict[str, SplitState] = field(default_factory=dict)
    images: Images = field(default_factory=Images)
    next: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing that is needed is absent or corrupt."""
        return not any(self.at("error"))

    def at(self, level: Level) -> Iterator[Finding]:
        """Iterate over the findings of one level."""
        return (finding for finding in self.checks if finding.level == level)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types under the names of the fields, with ``ok`` and ``levels`` (level to number)."""
        levels = {level: sum(1 for _ in self.at(level)) for level in LEVELS}
        return {**asdict(self), "root": str(self.root), "ok": self.ok, "levels": levels}
