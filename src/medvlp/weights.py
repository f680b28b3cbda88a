"""Checkpoint → method."""

from pathlib import Path
from typing import TYPE_CHECKING

from medvlp.errors import CheckpointError

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule


def load(path: str | Path, device: str = "cpu") -> "PretrainModule":
    """Loads a method from a medvlp checkpoint: architecture, weights, tokenizer and preprocessing, nothing else needed.

    The file is read as plain values and tensors; no code in it can run, and only registered methods are built.

    Args:
        path: a checkpoint written by ``medvlp fit``.
        device: where to put the model.

    Returns:
        The method in eval mode.

    Raises:
        CheckpointError: no such file, not a medvlp checkpoint, or weights that do not fit.
        ConfigError: its method is not registered here.
    """
    import torch

    from medvlp.methods.base import CHECKPOINT_KEY
    from medvlp.registry import get_method

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not readable as plain weights ({type(error).__name__}); it is damaged, or not of medvlp"
        ) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise CheckpointError(f"{path}: not a medvlp checkpoint (it has no {CHECKPOINT_KEY!r} entry)")
    payload = checkpoint[CHECKPOINT_KEY]
    try:
        model = get_method(payload["method"])(**payload["hyperparameters"])
        model.on_load_checkpoint(checkpoint)
        weights, version = checkpoint["state_dict"], payload["version"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: incomplete, or written by another version of medvlp ({type(error).__name__}: {error})"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: weights do not fit {payload['method']} as of version {version}: "
            + " ".join(str(error).split())[:300]
        ) from error
    return model.to(device).eval()
