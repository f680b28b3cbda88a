"""The files of a corpus by name: one listing per folder instead of a question to the disk for each file."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medvlp.io.headers import ImageHeader, read_header

IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg")


def image_files(folders: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, str]:
    """File name to absolute path of the image files that lie directly in some folders.

    Args:
        folders: those that do not exist are passed over; the first one that has a name wins.
        suffixes: endings of image files, in lower case.
    """
    found: dict[str, str] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(os.path.abspath(folder)) as entries:
            for entry in entries:
                if entry.name.lower().endswith(suffixes) and entry.is_file():
                    found.setdefault(entry.name, entry.path)
    return found


def read_headers(paths: Sequence[str]) -> list[ImageHeader]:
    """Headers of many image files, in order; threads, since network disks make each of them wait."""
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(read_header, paths, chunksize=16))
