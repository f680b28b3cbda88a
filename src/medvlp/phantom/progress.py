"""Writing a phantom under a progress bar."""

from pathlib import Path

from medvlp.phantom.model import PhantomSpec


def write_with_progress(
    layout: str, root: str | Path, spec: PhantomSpec, *, workers: int = 1, overwrite: bool = False
) -> Path:
    """As :func:`medvlp.phantom.write_phantom`, with a bar on the terminal that goes when the work is done.

    Args:
        layout: corpus whose layout is written.
        root: folder to write into.
        spec: what to write.
        workers: processes; the bytes do not depend on it.
        overwrite: replace another phantom in the folder.

    Returns:
        The folder.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from medvlp.phantom import write_phantom

    columns = (TextColumn("writing the phantom"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # without a terminal there is nothing to draw on, and nothing to leave behind
    console = Console(stderr=True)
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=spec.studies)
        return write_phantom(
            layout,
            root,
            spec,
            workers=workers,
            overwrite=overwrite,
            progress=lambda finished: bar.update(task, completed=finished),
        )
