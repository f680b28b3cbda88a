"""Fits that are stopped at a point of their work, in a process each; ``test_stops.py`` looks at what they leave.

A point is a number of calls of the hooks that :class:`Stop` counts, so that neither clock nor speed decide anything.
"""

import errno
import json
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from helpers import datamodule, sizes, trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, timer
from medvlp_baselines.template.module import TemplateMethod

from medvlp.training.optim import OptimConfig

STEPS, EPOCHS, EVERY = 5, 3, 3
"""Steps of an epoch, epochs, and after how many steps a checkpoint is due."""

HOOKS = (
    "on_train_batch_start",
    "on_after_backward",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
)


class Stop(L.Callback):
    """Counts the work and stops it.

    Args:
        kind: "kill", "kill while saving", "term", "interrupt", "full" (disk) or "time"; "" only counts.
        point: after how many calls.
    """

    def __init__(self, kind: str = "", point: int = -1) -> None:
        self.kind, self.point, self.work = kind, point, []
        for hook in HOOKS:
            setattr(self, hook, lambda trainer, *_, hook=hook: self.count(trainer, hook))

    def count(self, trainer: L.Trainer, hook: str) -> None:
        self.work.append((hook, trainer.global_step))
        if len(self.work) - 1 != self.point:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind in ("term", "interrupt"):
            os.kill(os.getpid(), signal.SIGTERM if self.kind == "term" else signal.SIGINT)
        if self.kind in ("full", "kill while saving"):
            # what was written is not yet safe on the disk
            os.fsync = self.no_space if self.kind == "full" else lambda _: os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fit(folder: Path, stop: Stop, resume: bool = False) -> None:
    """One run, to its end or to the stop."""
    data = datamodule(folder.parent / "data")
    torch.manual_seed(0)
    optim = OptimConfig(lr=1e-2, schedule="plateau")
    model = TemplateMethod(**sizes(prompts=None, ema_decay=0.9, optim=optim))
    last = ModelCheckpoint(
        folder / "checkpoints", every_n_train_steps=EVERY, save_last=True, enable_version_counter=False
    )
    best = ModelCheckpoint(
        folder / "checkpoints", filename="best", monitor="val/loss", save_last=False, enable_version_counter=False
    )
    callbacks: list[L.Callback] = [stop, last, best, EarlyStopping("val/loss", patience=EPOCHS)]
    if stop.kind == "time":
        # a clock that shows the work done; it starts anew in a run that resumes
        timer.time = SimpleNamespace(monotonic=lambda: float(len(stop.work)))
        callbacks.append(Timer(timedelta(seconds=stop.point)))
    run = trainer(folder, max_epochs=EPOCHS, num_sanity_val_steps=0, callbacks=callbacks)
    run.fit(model, datamodule=data, ckpt_path="last" if resume else None)


def in_a_process(folder: Path, stop: Stop, resume: bool = False) -> int:
    """How the run's process ends: its exit status, or minus the signal."""
    process = os.fork()
    if process == 0:
        code: Any = 70
        try:
            fit(folder, stop, resume)
            (folder / "work.json").write_text(json.dumps(stop.work))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except OSError as error:
            code = error.errno
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder: Path, stops: dict[str, tuple[str, int]]) -> None:
    """The undisturbed run, and each stopped one with what resumes it."""
    assert in_a_process(folder / "whole", Stop()) == 0
    for name, (kind, point) in stops.items():
        run = folder / name
        notes = {"code": in_a_process(run, Stop(kind, point))}
        checkpoints = run / "checkpoints"
        notes["parts"] = sorted(path.name for path in checkpoints.glob("*.part"))
        last = checkpoints / "last.ckpt"
        notes["step"] = torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0
        notes["resumed"] = in_a_process(run, Stop(), resume=True)
        notes["parts at the end"] = sorted(path.name for path in checkpoints.glob("*.part"))
        (run / "notes.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
