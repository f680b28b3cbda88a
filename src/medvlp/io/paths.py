"""Paths that users give."""

import os
from pathlib import Path

from medvlp.errors import CheckpointError


def folder_path(path: str | os.PathLike[str]) -> Path:
    """Return a folder's path without ``..``, so that the paths of files found in it begin with it.

    Links before a ``..`` are followed, as the system does; all others stay as they are spelled.
    """
    return Path(os.path.realpath(path)) if ".." in Path(path).parts else Path(path)


def local_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path of a local file of weights, which errors call ``what``.

    Raises:
        CheckpointError: it is a URL, or does not exist.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path}: is a URL; download it first, then give the local {what}")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such {what}; give the path of a local file")
    return Path(path)
