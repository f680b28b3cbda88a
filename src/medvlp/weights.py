"""Checkpoint → method."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.errors import CheckpointError
from medvlp.io.paths import local_file

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a medvlp checkpoint as plain values and tensors, which stay in the file until they are used.

    Raises:
        CheckpointError: no such file, or not a medvlp checkpoint.
    """
    from medvlp.encoders.loading import read_plain
    from medvlp.training.schema import CHECKPOINT_KEY

    path = local_file(path, "checkpoint")
    try:
        checkpoint = read_plain(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: not readable as plain weights ({error}); it is damaged, or not of medvlp: copy the file again"
        ) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise CheckpointError(f"{path}: not a medvlp checkpoint (it has no {CHECKPOINT_KEY!r} entry)")
    return checkpoint


def load(path: str | Path, device: str = "cpu", averaged: bool = True) -> "PretrainModule":
    """Load a method with its weights, tokenizer and preprocessing from a medvlp checkpoint.

    The file is read as plain values and tensors; no code in it can run, and only registered methods are built.

    Args:
        path: a checkpoint written by ``medvlp fit``.
        device: where to put the model.
        averaged: of a run with ``ema_decay`` take the moving average, which was validated; False takes the trained
            weights.

    Returns:
        The method in eval mode.

    Raises:
        CheckpointError: no such file, not a medvlp checkpoint, or weights that do not fit.
        ConfigError: its method is not registered here.
    """
    from medvlp.methods.payload import Bounded, checked_hyperparameters, read_payload
    from medvlp.registry import get_method
    from medvlp.training.schema import CHECKPOINT_KEY, restoring, weights_of

    checkpoint = read_checkpoint(path)
    stored = checkpoint[CHECKPOINT_KEY]
    if isinstance(stored, dict) and "task" in stored:
        task = " ".join(str(stored["task"]).split())[:60]
        raise CheckpointError(
            f"{path}: the head of a task ({task}), not a method; use it with medvlp test --ckpt_path, or load the "
            "checkpoint of the method that it was trained on"
        )
    with restoring(f"{path}: "):
        payload = read_payload(checkpoint)
        weights = weights_of(checkpoint)
        if not averaged and "current_model_state" in checkpoint:
            weights = weights_of(checkpoint, "current_model_state")
    kind = get_method(payload.method)
    with restoring(f"{path}, of medvlp {payload.version}: "):
        with Bounded(weights):
            model = kind(**checked_hyperparameters(kind, payload.hyperparameters))
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(weights)
    return model.to(device).eval()
