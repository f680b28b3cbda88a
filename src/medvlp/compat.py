"""Private names of other libraries, each in one place.

Each entry says in which version the name was seen. ``tests/test_compat.py`` fails when one is gone, so that an upgrade
tells what to look at. Nothing is imported here at run time: the functions take the objects that they reach into.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.optim import Optimizer

# ---------------------------------------------------------------- torch 2.11


def unscale_before_step(optimizer: "Optimizer") -> None:
    """Let a gradient scaler unscale the gradients of a fused optimiser (``Optimizer._step_supports_amp_scaling``).

    Fused kernels could do so themselves, and Lightning then refuses to clip. Without the mark the scaler unscales
    before the step, as for any other optimiser.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


# ---------------------------------------------------------------- lightning 2.6.6


def trainer_of(module: "L.LightningModule") -> Any:
    """Return the trainer that a module is attached to (``LightningModule._trainer``), without an error if none is."""
    return getattr(module, "_trainer", None)


def replace_last_checkpoint(saver: "ModelCheckpoint", note: Callable[..., None] | None) -> None:
    """Call ``note`` where a saver would write ``last.ckpt`` (``_save_last_checkpoint``); None lets it write again."""
    if note is None:
        del saver._save_last_checkpoint
    else:
        saver._save_last_checkpoint = note  # type: ignore[method-assign]


def write_last_checkpoint(saver: "ModelCheckpoint", trainer: "L.Trainer") -> None:
    """Write ``last.ckpt`` without counting it as one of the saver's own saves, or it would skip that of the best epoch.

    Names: ``_save_last_checkpoint``, ``_monitor_candidates``, ``_last_global_step_saved``, ``_last_checkpoint_saved``.
    """
    before = saver._last_global_step_saved, saver._last_checkpoint_saved
    type(saver)._save_last_checkpoint(saver, trainer, saver._monitor_candidates(trainer))
    saver._last_global_step_saved, saver._last_checkpoint_saved = before


def epoch_complete(trainer: "L.Trainer") -> bool:
    """Whether all batches of the epoch are trained (``_TrainingEpochLoop._num_ready_batches_reached``)."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def training_done(trainer: "L.Trainer") -> bool:
    """Whether ``max_steps`` is reached (``_TrainingEpochLoop._is_training_done``)."""
    return trainer.fit_loop.epoch_loop._is_training_done


def validation_due(trainer: "L.Trainer") -> bool:
    """Whether a validation follows the batch (``_FitLoop._data_fetcher``, ``_should_check_val_fx``)."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def step_plateau_schedules(trainer: "L.Trainer") -> None:
    """Step plateau schedules before the epoch's checkpoint (``_Loop._restarting``).

    Lightning steps them once that checkpoint is written, and in a resumed epoch not at all; while it is "restarting" it
    leaves them alone.
    """
    trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    trainer.fit_loop._restarting = True


def handlers_before_training(trainer: "L.Trainer") -> dict[int, Any]:
    """Return the signal handlers that Lightning replaced (``_SignalConnector._original_handlers``)."""
    return trainer._signal_connector._original_handlers


def end_after_step(trainer: "L.Trainer") -> None:
    """Let Lightning end the run once the step is logged (``Trainer._signal_connector``)."""
    trainer._signal_connector.received_sigterm = True


def strategy_timeout(trainer: "L.Trainer", default: timedelta) -> timedelta:
    """Return the timeout of collectives that a strategy was given (``DDPStrategy._timeout``)."""
    return getattr(trainer.strategy, "_timeout", default)
