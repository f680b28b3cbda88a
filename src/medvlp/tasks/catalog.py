"""The tasks by name, without importing them: what ``medvlp list tasks`` shows and the command line offers."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from medvlp.tasks.base import Task


class TaskEntry(NamedTuple):
    """Where a task is.

    Attributes:
        name: its class.
        module: where that is.
        trains: whether there is anything to fit.
        protocols: by whose rules it can run, the default first.
    """

    name: str
    module: str
    trains: bool
    protocols: tuple[str, ...]

    def load(self) -> "type[Task]":
        """The class."""
        return getattr(import_module(self.module), self.name)


TASKS: dict[str, TaskEntry] = {
    "classification": TaskEntry(
        "Classification",
        "medvlp.tasks.classification",
        True,
        (
            *("linear", "linear_mgca", "linear_g2d", "linear_gloria"),
            *("finetune_g2d", "finetune_medklip", "finetune_maco", "finetune_benchx"),
        ),
    ),
    "zero_shot": TaskEntry(
        "ZeroShotClassification",
        "medvlp.tasks.zero_shot",
        False,
        ("default", "chexzero", "g2d", "maco", "medklip", "kad", "biovil", "cxrclip", "gloria", "medclip"),
    ),
    "segmentation": TaskEntry(
        "Segmentation", "medvlp.tasks.segmentation", True, ("frozen", "mgca", "g2d", "gloria", "medklip", "maco")
    ),
    "detection": TaskEntry("Detection", "medvlp.tasks.detection.task", True, ("honest", "mgca")),
    "grounding": TaskEntry(
        "Grounding", "medvlp.tasks.grounding", False, ("default", "g2d", "biovil", "maco", "medklip")
    ),
    "retrieval": TaskEntry("Retrieval", "medvlp.tasks.retrieval", False, ("pairs", "gloria_5x200", "convirt_8x200")),
}
