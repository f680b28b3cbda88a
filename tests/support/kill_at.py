"""A callback that kills its own process, as a power cut or a job scheduler would."""

import os
import signal

import lightning as L


class KillAt(L.Callback):
    """SIGKILL at a hook of the loop.

    Args:
        step: optimiser steps done.
        hook: a hook's name, such as "on_train_batch_start".
    """

    def __init__(self, step: int, hook: str) -> None:
        def kill(trainer: L.Trainer, *args, **kwargs) -> None:
            if trainer.global_step == step and not trainer.sanity_checking:
                os.kill(os.getpid(), signal.SIGKILL)

        assert hasattr(self, hook)
        setattr(self, hook, kill)
