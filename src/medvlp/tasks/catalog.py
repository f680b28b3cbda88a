"""The tasks by name, without importing them, for ``medvlp list tasks`` and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from medvlp.tasks.base import Task


class TaskEntry(NamedTuple):
    """Class, module, whether there is anything to fit, and the evaluation protocols of a task, the default first."""

    name: str
    module: str
    trains: bool
    protocols: tuple[str, ...]

    def load(self) -> "type[Task]":
        """Import the class."""
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
