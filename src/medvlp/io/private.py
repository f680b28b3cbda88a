"""Files that hold report text or what can be turned back into it: for their owner alone."""

import os
from pathlib import Path
from typing import IO


def open_private(path: str | Path) -> IO[bytes]:
    """Open a file for writing, readable by its owner alone whatever the umask.

    Args:
        path: the file; its folder is made if need be. A file that is there is replaced and loses its rights.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # the mode counts for new files only
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
