"""Two gloo processes that train together, of which one or both are told to stop, or are frozen."""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers import datamodule, sizes, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from medvlp_baselines.template.module import TemplateMethod

from medvlp.training.optim import OptimConfig
from medvlp.training.stopping import StopGuard


class SignalAt(L.Callback):
    """Sends this process a signal.

    Args:
        signum: the signal.
        hook: in which hook.
        step: at which optimiser step.
    """

    def __init__(self, signum: int, hook: str, step: int) -> None:
        def send(trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == step and not self.sent:
                self.sent = True
                os.kill(os.getpid(), signum)

        self.sent = False
        setattr(self, hook, send)


def work(rank: int, folder: str, port: int, signals: list[tuple[int, int, str, int]], timeout: float) -> None:
    """One of the processes.

    Args:
        rank: its number.
        folder: of the run.
        port: for both to meet.
        signals: (rank, signal, hook, step) of each signal.
        timeout: seconds that they wait for each other in training.
    """
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="test",  # tells Lightning that the processes are there already
    )
    data = datamodule(Path(folder) / f"data{rank}", batch_size=1, eval_batch_size=1)
    torch.manual_seed(0)
    model = TemplateMethod(**sizes(prompts=None, optim=OptimConfig(lr=1e-2)))
    saving = ModelCheckpoint(
        Path(folder) / "checkpoints", every_n_train_steps=100, save_last=True, enable_version_counter=False
    )
    sending = [SignalAt(signal.Signals(signum), hook, step) for to, signum, hook, step in signals if to == rank]
    run = trainer(
        Path(folder),
        devices=2,
        strategy="ddp",
        max_epochs=2,
        num_sanity_val_steps=0,
        callbacks=[*sending, saving, StopGuard(timeout)],
    )
    run.fit(model, datamodule=data)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main(folder: Path, stops: dict[str, tuple[list[tuple[int, int, str, int]], float]]) -> None:
    """Each pair of processes in a folder of its own, with a note of how they ended."""
    for number, (signals, timeout) in stops.items():
        run, port = folder / number, _free_port()
        pids = []
        for rank in range(2):
            pids.append(os.fork())
            if pids[-1] == 0:
                code: Any = 1
                try:
                    work(rank, str(run), port, signals, timeout)
                    code = 0
                except SystemExit as end:
                    code = end.code
                except BaseException:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(code)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        (run / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
