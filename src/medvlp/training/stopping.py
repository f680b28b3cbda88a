"""How a run ends: contents of ``last.ckpt``, signals, and processes that hang."""

import contextlib
import copy
import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medvlp import compat, distributed
from medvlp.errors import NonFiniteLossError
from medvlp.store import remove_leftovers
from medvlp.training.checkpoint_io import SafeCheckpointIO

_ENDING = (signal.SIGTERM, signal.SIGINT)
_REQUEUING = (signal.SIGUSR1, signal.SIGUSR2)


class StopGuard(Checkpoint):
    """Keep ``last.ckpt`` at the last finished step or epoch, however a run ends, and end it on a signal.

    Every method and task adds one. It writes the ``last.ckpt`` of each :class:`ModelCheckpoint` with ``save_last`` (of
    the first one, if none sets it): when that callback would, at the end of every epoch, and when ``max_steps``,
    ``max_time``, early stopping, a signal or an error ends the run. A resumed run gives the same result as an
    uninterrupted one; if the run ended before or during a validation, it starts with that validation.

    SIGTERM and Ctrl-C take effect at the end of the batch, on all processes of the run; the exit status is 143 or 130.
    A second Ctrl-C ends the process at once. Handlers of SIGUSR1 and SIGUSR2 (requeuing) run then, too.

    Args:
        timeout: seconds that a process waits for the others in a step. Then it ends with an error and kills the frozen
            ones of its machine. The timeout of ``strategy: {class_path: DDPStrategy, init_args: …}`` takes precedence.
    """

    best_model_path = ""  # Lightning reads it of the first checkpoint callback

    def __init__(self, timeout: float = 240.0) -> None:
        self.timeout = timeout
        self._savers: list[ModelCheckpoint] = []
        self._save_last: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._deferred: dict[int, Callable[..., Any]] = {}
        self._signal = 0
        self._ended_by = 0
        self._loops: dict[str, Any] = {}
        self._due = self._unsaved = self._stepping = self._pending = self._cut = self._training = False
        self._group: Any = None
        self._peers: list[tuple[str, int]] = []
        self._aligned = True
        self._process = os.getpid()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take over the writing of ``last.ckpt``; write checkpoints atomically."""
        self._reset()
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if stage != "fit":
            return
        savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        silent = [saver for saver in savers if saver.save_last is None]
        self._savers = [saver for saver in savers if saver.save_last] or silent[:1]
        self._save_last = [saver.save_last for saver in self._savers]
        for saver in self._savers:
            saver.save_last = True
            compat.replace_last_checkpoint(saver, self._note)
            if trainer.is_global_zero and saver.dirpath and "://" not in str(saver.dirpath):
                remove_leftovers(saver.dirpath, "*.ckpt")

    def _note(self, *_: Any) -> None:
        self._due = True

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # must not replace last.ckpt
            for saver in self._savers:
                compat.write_last_checkpoint(saver, trainer)
        self._due = self._unsaved = False

    def _release(self) -> None:
        for saver, save_last in zip(self._savers, self._save_last, strict=True):
            saver.save_last = save_last
            compat.replace_last_checkpoint(saver, None)
        self._savers, self._save_last = [], []

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a resumed run start with the validation that is due, or continue an epoch that was cut short."""
        if self._loops and (self._pending or self._cut):
            checkpoint["loops"]["fit_loop"] = _before_validation(self._loops) if self._pending else self._loops

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Mark the weights as changing."""
        self._stepping = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write ``last.ckpt`` if due, and handle a signal."""
        self._loops, self._stepping, self._unsaved = trainer.fit_loop.state_dict(), False, True
        self._cut = not compat.epoch_complete(trainer) and (trainer.should_stop or compat.training_done(trainer))
        self._pending = not self._cut and compat.validation_due(trainer)
        signum = self._agreed()
        if self._due or signum:
            self._write(trainer)
        self._act_on(trainer, signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``last.ckpt`` of the epoch, or of the last step if the epoch was cut short."""
        self._cut, self._pending = not compat.epoch_complete(trainer), False
        if not self._cut:
            compat.step_plateau_schedules(trainer)
        self._write(trainer)
        self._act_on(trainer, self._agreed())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the validation as done."""
        if not trainer.sanity_checking:
            self._pending = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the finished steps, unless a step was interrupted; kill frozen processes."""
        if isinstance(exception, SIGTERMException):
            # Lightning's launcher kills the first process if one of the others ends with an error
            launched = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
            exception.code = 0 if launched and trainer.global_rank else 128 + (self._ended_by or signal.SIGTERM)
        elif trainer.world_size > 1:
            self._end_frozen_peers()
        elif self._unsaved and not self._stepping and not isinstance(exception, NonFiniteLossError | OSError):
            self._write(trainer)
        self._release()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Return the writing of ``last.ckpt`` to Lightning."""
        self._release()

    def _watch(self, trainer: L.Trainer, batches: Any) -> None:
        """Replace Lightning's signal handlers, which synchronise processes in the middle of a step."""
        if trainer.world_size > 1:
            self._group = self._group or distributed.cpu_group()
            self._set_timeout(trainer, timedelta(seconds=self.timeout))
            self._peers = self._peers or distributed.processes(self._group)
            count = int(sum(batches) if isinstance(batches, list) else batches)
            self._aligned = distributed.highest(count, self._group) == -distributed.highest(-count, self._group)
        if threading.current_thread() is not threading.main_thread() or self._deferred:
            return
        before = compat.handlers_before_training(trainer)
        for signum in (*_ENDING, *_REQUEUING):
            handler = signal.getsignal(signum) if signum in _REQUEUING else before.get(signum)
            if signum in _REQUEUING and not callable(handler):
                continue
            self._deferred[signum] = handler if callable(handler) else lambda *_: None
            if signum != signal.SIGINT or trainer.state.fn == "fit":
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a worker of a data loader, which inherits the handler; its parent decides
        if signum == signal.SIGINT:
            if self._signal or not self._training:
                raise KeyboardInterrupt
            rank_zero_info("Ctrl-C: the run ends after this batch and saves it; press again to end at once")
        elif signum == signal.SIGTERM:
            self._deferred[signum](signum, frame)
        self._signal = max(self._signal, signum)

    def _agreed(self) -> int:
        return self._signal if self._group is None else distributed.highest(self._signal, self._group)

    def _act_on(self, trainer: L.Trainer, signum: int) -> None:
        if signum in _REQUEUING:
            self._requeue(signum)
        elif signum:
            self._ended_by = signum
            compat.end_after_step(trainer)

    def _requeue(self, signum: int) -> None:
        self._signal = 0
        if signum in self._deferred:
            self._deferred[signum](signum, None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch for signals."""
        self._watch(trainer, 0)
        self._training = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch for signals."""
        stages: dict[Any, str] = {"sanity_check": "sanity_val", "validate": "val", "test": "test", "predict": "predict"}
        self._watch(trainer, getattr(trainer, f"num_{stages[trainer.state.stage]}_batches"))

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """End an evaluation on a signal."""
        signum = self._agreed() if self._aligned else 0
        if not signum:
            return
        if self._unsaved and trainer.state.fn == "fit":
            self._write(trainer)
        if signum in _ENDING:
            self._ended_by = signum
            raise SIGTERMException
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._requeue(signum)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _set_timeout(self, trainer: L.Trainer, timeout: timedelta) -> None:
        usual = distributed.DEFAULT_TIMEOUT
        if self._group is not None and compat.strategy_timeout(trainer, usual) == usual:
            distributed.set_timeout(timeout, self._group)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the default timeout for the work that the first process does alone."""
        self._training = False
        self._set_timeout(trainer, distributed.DEFAULT_TIMEOUT)

    on_test_epoch_end = on_train_end

    def _end_frozen_peers(self) -> None:
        """SIGKILL processes of this run on this machine that SIGSTOP has frozen: nothing else would end them."""
        host = socket.gethostname()
        for name, pid in self._peers:
            if name == host and pid != os.getpid():
                with contextlib.suppress(OSError, IndexError):
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                        os.kill(pid, signal.SIGKILL)


def _before_validation(loops: dict[str, Any]) -> dict[str, Any]:
    """Edit the loops' state after a training batch so that a resumed run starts with the validation that is due.

    On resuming from the end of a batch Lightning skips the validation that follows, but it resumes an interrupted one:
    mark its first batch as started.
    """
    loops = copy.deepcopy(loops)
    for part in ("total", "current"):
        trained = loops["epoch_loop.batch_progress"][part]
        trained["completed"] = trained["processed"]
        validated = loops["epoch_loop.val_loop.batch_progress"][part]
        done = validated["completed"] if part == "total" else 0
        validated.update(ready=done + 1, started=done + 1, processed=done, completed=done)
    return loops
