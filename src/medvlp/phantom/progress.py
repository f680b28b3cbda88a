"""Writing a phantom under a progress bar."""

from pathlib import Path

from medvlp.phantom.model import PhantomSpec


def write_with_progress(
    layout: str, root: str | Path, spec: PhantomSpec, *, workers: int = 1, overwrite: bool = False
) -> Path:
    """Write a phantom as :func:`medvlp.phantom.write_phantom` does, with a transient progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from medvlp.phantom import write_phantom

    columns = (TextColumn("writing the phantom"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=spec.studies)

        def advance(finished: int) -> None:
            bar.update(task, completed=finished)

        return write_phantom(layout, root, spec, workers=workers, overwrite=overwrite, progress=advance)
