"""Private names of other libraries, each in one place.

Each entry says in which version the name was seen. ``tests/test_compat.py`` fails when one is gone, so that an upgrade
tells what to look at. Lightning is not imported at run time: the functions take the objects that they reach into.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import lightning as L
    from jsonargparse import ArgumentParser
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI as _Base
else:
    _Base = object

__all__ = ["TorchDispatchMode", "tree_leaves"]

# ---------------------------------------------------------------- torch 2.11


def sparse_parts(tensor: Tensor) -> list[Tensor]:
    """Return the two tensors of a COO tensor, coalesced or not (``Tensor._indices``, ``Tensor._values``)."""
    return [tensor._indices(), tensor._values()]


def set_group_timeout(distributed: Any, timeout: timedelta, group: Any) -> None:
    """Set the timeout of a process group's later collectives (``distributed_c10d._set_pg_timeout``)."""
    distributed.distributed_c10d._set_pg_timeout(timeout, group)


@contextmanager
def keep_print_options() -> Iterator[None]:
    """Restore the print options of tensors, which torch can set but not tell (``torch._tensor_str.PRINT_OPTS``)."""
    options = torch._tensor_str.PRINT_OPTS
    before = dict(vars(options))
    try:
        yield
    finally:
        vars(options).update(before)


def unscale_before_step(optimizer: Optimizer) -> None:
    """Let a gradient scaler unscale the gradients of a fused optimiser (``Optimizer._step_supports_amp_scaling``).

    Fused kernels could do so themselves, and Lightning then refuses to clip. Without the mark the scaler unscales
    before the step, as for any other optimiser.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


# ---------------------------------------------------------------- timm 1.0.26


def features_with_norm(model: nn.Module, indices: int | tuple[int, ...]) -> nn.Module:
    """Wrap a vision transformer to return maps after its final norm (``timm.models._features.FeatureGetterNet``).

    ``timm.create_model(..., features_only=True)`` does the same and always drops the norm.
    """
    from timm.models._features import FeatureGetterNet

    return FeatureGetterNet(model, indices, norm=True)


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


class CLIHooks(_Base):
    """The private steps of ``LightningCLI`` under public names, to be mixed in before it.

    Names: ``_parse_ckpt_path``, ``_set_seed``, ``_run_subcommand``, ``_prepare_subcommand_kwargs``.
    """

    def check_ckpt_path(self) -> None:
        """Check ``ckpt_path`` before anything is built; Lightning would put its hyper-parameters over the config."""

    def set_seed(self) -> None:
        """Seed everything."""
        super()._set_seed()

    def run_subcommand(self, subcommand: str) -> None:
        """Run ``fit``, ``validate``, ``test`` or ``predict``."""
        super()._run_subcommand(subcommand)

    def subcommand_arguments(self, subcommand: str) -> Mapping[str, Any]:
        """Return the arguments of the trainer's method."""
        return super()._prepare_subcommand_kwargs(subcommand)

    def _parse_ckpt_path(self) -> None:
        self.check_ckpt_path()

    def _set_seed(self) -> None:
        self.set_seed()

    def _run_subcommand(self, subcommand: str) -> None:
        self.run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return dict(self.subcommand_arguments(subcommand))


# ---------------------------------------------------------------- jsonargparse 4.53


def option_names(parser: "ArgumentParser") -> list[str]:
    """Return the names of a parser's options, sorted, without ``help`` (``ArgumentParser._actions``, of argparse)."""
    return sorted(action.dest for action in parser._actions if action.dest != "help")
