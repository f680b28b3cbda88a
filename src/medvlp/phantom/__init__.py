"""The phantom: a synthetic chest-radiograph corpus with exact truth, for tests, tutorials and measurements.

It draws radiographs (``render``), words reports (``reports``) and writes both in the layout of a real corpus
(``layouts``), so that everything downstream runs on it unchanged. No real patient is in it.

    from medvlp.phantom import PhantomSpec, write_phantom
    write_phantom("mimic_cxr", "data/phantom", PhantomSpec(studies=200))
"""

from collections.abc import Callable
from pathlib import Path

from medvlp.phantom.layouts import LAYOUTS, layout_writer
from medvlp.phantom.model import FINDINGS, Difficulty, PhantomSpec

__all__ = ["FINDINGS", "LAYOUTS", "Difficulty", "PhantomSpec", "write_phantom"]


def write_phantom(
    layout: str,
    root: str | Path,
    spec: PhantomSpec,
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a phantom corpus; a complete tree of the same spec is left as it is.

    Args:
        layout: the file layout, a member of ``LAYOUTS``.
        root: folder to write into, created if needed.
        spec: settings of the phantom; the same spec gives the same bytes.
        workers: number of processes, at least 1. They are started fresh ("spawn"), so with more than one a script
            must call this under ``if __name__ == "__main__":``.
        progress: called with the number of studies finished so far.
        overwrite: whether another phantom in ``root`` is replaced.

    Raises:
        ConfigError: the layout is unknown, or a setting is out of its range.
        DataError: ``root`` holds something else.
    """
    return layout_writer(layout).write(spec, Path(root), workers=workers, progress=progress, overwrite=overwrite)
