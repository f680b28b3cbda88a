"""``medvlp doctor``: is a corpus folder what it should be, and what can be run on it?

:func:`examine` goes over a corpus and returns a :class:`Diagnosis`: checks with what was found against what is
expected, and what to do. It knows no corpus; their classes declare tables, folders and counts.
"""

from medvlp.doctor.command import add_arguments, diagnose, run
from medvlp.doctor.examine import examine
from medvlp.doctor.report import LEVELS, Check, Diagnosis, Images, Level, SplitState, TaskState

__all__ = [
    "LEVELS",
    "Check",
    "Diagnosis",
    "Images",
    "Level",
    "SplitState",
    "TaskState",
    "add_arguments",
    "diagnose",
    "examine",
    "run",
]
