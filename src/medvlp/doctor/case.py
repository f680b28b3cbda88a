"""A corpus while it is examined: what several checks need, read once."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.doctor.findings import Diagnosis, Finding, Level
from medvlp.errors import MedVLPError
from medvlp.splits import SplitInput

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

_FAULT = "this is a fault of medvlp, not of the data; please report it with the file that provokes it"


@dataclass
class Case:
    """What a check of the doctor sees.

    Args:
        corpus: reader that skips broken items and reads each table once.
        diagnosis: the findings so far; checks also fill its tasks, splits and images.
        deep: whether to decode every image and verify every checksum.
        lists: folder with the authors' list files, for the splits that need them.
        workers: threads for the images; None chooses.
        progress: called while something takes long.
        records: the records of the tasks that can be read, from the check of the tasks on.
        left_out: ids that were left out of any task's records.
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
    # the message is left out, since it may quote a report
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    return Finding(name, "error", f"the reader failed with {type(error).__name__} ({where})", remedy=_FAULT)
