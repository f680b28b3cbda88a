"""A corpus under examination, and the findings about it: plain data, for the terminal and for JSON alike."""

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.errors import MedVLPError
from medvlp.splits import SplitInput

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

_FAULT = "this is a fault of medvlp, not of the data; please report it with the file that provokes it"

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
        expected: what should have been found, if known.
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
    order of frequency; no record names the ``unnamed`` files; ``decoded`` says whether every pixel was decoded.
    """

    files: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    monochrome1: int = 0
    unnamed: int = 0
    decoded: bool = False


@dataclass
class Diagnosis:
    """All findings about a corpus (``checks``, in order) read with one set of options, and commands to type next.

    A phantom need not have the counts of a release.
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
        return not self.at("error")

    def at(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self.checks if finding.level == level]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types under the names of the fields, with ``ok`` and ``levels`` (level to number)."""
        levels = {level: len(self.at(level)) for level in LEVELS}
        return {**asdict(self), "root": str(self.root), "ok": self.ok, "levels": levels}


@dataclass
class Case:
    """What a check sees.

    Args:
        corpus: reader that skips broken items and reads each table once.
        diagnosis: the findings so far; checks also fill its tasks, splits and images.
        deep: see :func:`~medvlp.doctor.examine.examine`, also for lists, workers and progress.
        records: the records of the tasks that can be read, from the check of the tasks on.
        left_out: ids that were dropped from any task's records.
    """

    corpus: Corpus
    diagnosis: Diagnosis
    deep: bool = False
    lists: str | Path | None = None
    workers: int | None = None
    progress: Progress | None = None
    records: dict[Task, Records] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    @cached_property
    def listing(self) -> SplitInput:
        """What the splits are made from."""
        return self.corpus.listing()

    def shortened(self, path: str) -> str:
        """Return an image's path without the folder of the images."""
        path, root = str(Path(path)), str(self.corpus.image_root.absolute())
        return path.removeprefix(root).lstrip("/\\") if path.startswith(root) else path


def refusal(name: str, level: Level, error: Exception) -> Finding:
    """Return the finding for an error of a reader; one that was not raised on purpose is a fault of the reader."""
    if isinstance(error, MedVLPError):
        return Finding(name, level, " ".join(str(error).split()))
    # without the message, since it may quote a report
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    return Finding(name, "error", f"the reader failed with {type(error).__name__} ({where})", remedy=_FAULT)
