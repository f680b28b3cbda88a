"""Finding the files of a corpus: listings instead of one question per file, and the size that its images share."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from medvlp.io.images import read_header

_TRIES = 8


def file_names(folder: Path) -> set[str]:
    """Names of everything directly in a folder; empty if there is no such folder."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def files_below(folder: Path, suffix: str, *, skip: Iterable[str] = ()) -> list[Path]:
    """All files of a suffix below a folder, sorted, so that the order does not depend on the disk.

    Args:
        folder: where to look; links to folders are not followed.
        suffix: with its dot, in any case of letters.
        skip: names of folders directly in ``folder`` that are left out.
    """
    found = []
    skipped = {os.path.join(folder, name) for name in skip}
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if os.path.join(place, f) not in skipped]
        found += [os.path.join(place, name) for name in names if name.lower().endswith(suffix)]
    return [Path(path) for path in sorted(found)]


def common_size(paths: Iterable[str | Path]) -> tuple[int, int] | None:
    """Height and width of a corpus whose images all have one size, from the first readable header among a few.

    Returns:
        None if none of the first files can be read. Checks against the image's far edge are then left to the loading of
        the images, which fails with the reason.
    """
    for path in islice(paths, _TRIES):
        header = read_header(Path(path))
        # a file that is cut short still says how large it would be
        if header.height and header.width:
            return header.height, header.width
    return None
