"""Paths that users give."""

import os
from pathlib import Path

from medvlp.errors import CheckpointError


def folder_path(path: str | os.PathLike) -> Path:
    """Return a folder's path without ``..``, so that the paths of files found in it begin with it.

    Links before a ``..`` are followed, as the system does; all others stay as they are spelled.
    """
    return Path(os.path.realpath(path)) if ".." in Path(path).parts else Path(path)


def local_file(path: str | os.PathLike, what: str) -> Path:
    """Return the path of a file of weights on this machine.

    Args:
        path: what the user gave.
        what: how errors call the file: "checkpoint".

    Raises:
        CheckpointError: it is a URL, or there is no such file.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path}: is a URL; download it first, then give the local {what}")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such {what}; give the path of a local file")
    return Path(path)
