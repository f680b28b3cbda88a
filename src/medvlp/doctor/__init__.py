"""``medvlp doctor``: is a corpus folder complete and sound, and what can be run on it?

:func:`examine` runs :data:`CHECKS`, and the ``checks`` of the corpus's own class, and returns a :class:`Diagnosis`. A
check is a function of a :class:`Case` that yields :class:`Finding`; none of those here knows a corpus by name.
"""

from medvlp.doctor.command import add_arguments, diagnose, run
from medvlp.doctor.examine import CHECKS, examine
from medvlp.doctor.findings import LEVELS, Case, Check, Diagnosis, Finding, Images, Level, SplitState, TaskState

__all__ = ["CHECKS", "LEVELS", "Case", "Check", "Diagnosis", "Finding", "Images", "Level", "SplitState", "TaskState"]
__all__ += ["add_arguments", "diagnose", "examine", "run"]
