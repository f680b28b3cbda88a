"""Files that are complete or absent, and folders that are made once, however their writers end.

Apart from the phantom's writer this is the only module that renames files. Temporary names end in ``.part``; only a
killed process leaves one behind.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from filelock import FileLock, Timeout

_POLL = 10.0  # seconds


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_sha256(value: Any) -> str:
    """Return the SHA-256 of a value as JSON, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "wb", *, private: bool = False) -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` when the block ends, complete and synced to disk.

    If the block raises or the process is killed, ``path`` stays as it was. Of several writers the last one wins;
    nobody reads a mixture. The folder is created if necessary.

    Args:
        path: the file.
        mode: "wb" for bytes, "w" for UTF-8 text.
        private: make the file readable by its owner alone, whatever the umask.

    Raises:
        OSError: the file cannot be written; ``filename`` is ``path``.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(handle, mode, encoding=None if mode == "wb" else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            error.filename = str(path)
            del error.filename2  # of a rename
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: str | Path, names: str = "") -> None:
    """Remove what killed writers left in a folder, of files whose names start with the pattern ``names``.

    Call it only while no other process writes there. The folder need not exist.
    """
    for path in Path(folder).glob(f"{names}*.part"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def get_or_make(path: str | Path, mark: str, waiting: Callable[[], object] = lambda: None) -> Iterator[Path | None]:
    """Make a folder unless it is complete; of several processes one makes it and the others wait.

    .. code-block:: python

        with get_or_make(path, "facts.json") as temporary:
            if temporary is not None:
                ...  # fill the folder `temporary`; write facts.json last

    The filled folder is renamed to ``path`` when the block ends. If the block raises, or the process is killed,
    ``path`` is still absent. On a file system without locks several processes may do the work; the first to end wins.

    Args:
        path: the folder, mostly named by a hash of what it depends on.
        mark: name of a file in it that describes the content. A folder without it is incomplete and is replaced.
        waiting: called every few seconds while another process makes the folder.

    Yields:
        An empty folder to fill, beside ``path``; None if ``path`` is complete.
    """
    path = Path(path)
    if (path / mark).is_file():
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock, waiting) as alone:
        if (path / mark).is_file():
            yield None
        else:
            if alone:
                remove_leftovers(path.parent, f"{path.name}.")
            temporary = _temporary(path)
            temporary.mkdir()
            try:
                yield temporary
                _rename(temporary, path, mark)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    lock.unlink(missing_ok=True)  # whoever still waits for it finds the folder complete


def _rename(temporary: Path, path: Path, mark: str) -> None:
    if not (path / mark).is_file():
        shutil.rmtree(path, ignore_errors=True)
        try:
            os.replace(temporary, path)
        except OSError:
            if not (path / mark).is_file():  # without locks, another process may have been faster
                raise
        _sync_folder(path.parent)


@contextmanager
def locked(path: str | Path, waiting: Callable[[], object], poll: float | None = None) -> Iterator[bool]:
    """Hold a lock file, which other processes cannot; yield False on a file system without locks.

    ``waiting`` is called every ``poll`` seconds (10 by default) while another process holds the lock; what it raises
    ends the waiting.
    """
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_POLL if poll is None else poll)
        except Timeout:
            waiting()
        except (OSError, NotImplementedError):
            yield False
            return
    try:
        yield True
    finally:
        lock.release()
