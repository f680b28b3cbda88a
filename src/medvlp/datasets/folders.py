"""The files of a corpus by name: one listing per folder instead of a question to the disk for each file."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from medvlp.io.headers import ImageHeader, read_header

IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".dcm")
"""Endings of image files, in lower case, in the order in which they stand in for each other."""
_TRIES = 8


def image_files(folders: Iterable[Path]) -> dict[str, str]:
    """Return file name to absolute path of the image files directly in some folders; the first that has a name wins."""
    paths: dict[str, str] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(os.path.abspath(folder)) as entries:
            for entry in entries:
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                    paths.setdefault(entry.name, entry.path)
    return paths


def with_other_endings(names: Iterable[str], files: Mapping[str, str]) -> dict[str, str]:
    """Return listed name to path, of those ``files`` (name to path) that have this name, but for the ending."""
    names = list(names)
    paths = {name: files[name] for name in names if name in files}
    if len(paths) < len(set(names)):
        others: dict[str, str] = {}
        for suffix in reversed(IMAGE_SUFFIXES):  # the first of them wins
            others.update({os.path.splitext(n)[0]: p for n, p in files.items() if n.lower().endswith(suffix)})
        for name in names:
            stem, suffix = os.path.splitext(name)
            if name not in paths and suffix.lower() in IMAGE_SUFFIXES and stem in others:
                paths[name] = others[stem]
    return paths


def mimic_paths(root: Path, names: Sequence[str]) -> list[str]:
    """Paths of images of MIMIC-CXR-JPG, by names such as ``files/p10/p10000032/s50414267/<dicom_id>.jpg``.

    They lie as released, without the folder ``files``, or all in one folder, and may have another ending. The first 20
    decide: asking for each of 377,110 files in every layout takes minutes on a network disk.
    """
    layouts: tuple[Callable[[str], str], ...] = (
        lambda name: name,
        lambda name: name.removeprefix("files/"),
        lambda name: "files/" + name.rpartition("/")[2],
        lambda name: name.rpartition("/")[2],
    )
    for suffix in ("", ".jpg", *IMAGE_SUFFIXES):
        for layout in layouts:
            if any(os.path.isfile(_ended(root, layout(name), suffix)) for name in names[:20]):
                return [_ended(root, layout(name), suffix) for name in names]
    return [_ended(root, name, "") for name in names]


def _ended(root: Path, name: str, suffix: str) -> str:
    return os.path.join(root, os.path.splitext(name)[0] + suffix if suffix else name)


def read_headers(paths: Sequence[str]) -> list[ImageHeader]:
    """Headers of many image files, in order; threads, since network disks make each of them wait."""
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(read_header, paths, chunksize=16))


def images_below(folder: Path, skip: str) -> list[Path]:
    """Return all image files below a folder, absolute and sorted, but those in its own folder named ``skip``.

    Links to folders are followed; each folder is visited once.
    """
    paths: list[str] = []
    visited = set()
    top = os.path.abspath(folder)
    for where, folders, names in os.walk(top, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in visited:  # a link back up would loop forever
            folders[:] = []
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if f != skip or where != top)
        paths += [os.path.join(where, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    return [Path(path) for path in sorted(paths)]


def common_size(paths: Iterable[str | Path]) -> tuple[int, int] | None:
    """Return height and width of a corpus whose images all have one size, from the first readable header among a few.

    None leaves checks against the image's far edge to the loading of the images, which fails with the reason.
    """
    for path in islice(paths, _TRIES):
        header = read_header(Path(path))
        # a file that is cut short still says how large it would be, a decompression bomb lies
        if header.height and header.width and "bomb" not in header.problem:
            return header.height, header.width
    return None
