"""Atomic writing and checked reading of checkpoint files."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from medvlp.encoders.loading import read_plain
from medvlp.errors import CheckpointError
from medvlp.store import atomic_write


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically: a kill or a full disk leaves an older file of that name intact."""
    try:
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:  # torch raises its own error when a write fails
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        cause.filename = cause.filename or str(path)
        raise cause from None


def _flaw(path: Path) -> str | None:
    try:
        read_plain(path)  # all of it, for its checksums
    except CheckpointError as error:
        return str(error)
    return None


def check_checkpoint(path: str | Path) -> None:
    """Raise a CheckpointError if a checkpoint is missing or damaged; it names the newest intact one of its folder."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    flaw = _flaw(path)
    if flaw is None:
        return
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file() and not other.samefile(path)]
    others.sort(key=lambda other: other.stat().st_mtime_ns, reverse=True)
    intact = next((other for other in others if _flaw(other) is None), None)
    remedy = f"the newest intact one is {intact}" if intact else "its folder holds no intact one"
    raise CheckpointError(f"{path}: damaged, or not a checkpoint of medvlp ({flaw}); {remedy}")


class SafeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, check them before loading, and load only plain values and tensors by default.

    Remote files (paths with ``://``) are written as Lightning does.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See :func:`write_checkpoint`."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """See :func:`check_checkpoint`."""
        if "://" not in str(path) and weights_only is not False:
            check_checkpoint(path)
        return super().load_checkpoint(path, map_location, weights_only is not False)
