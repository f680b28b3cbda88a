"""Callbacks of the jobs of a benchmark: the cost of a training, and early stopping that survives a resume."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from medvlp.results import hardware

COST = "cost.json"
"""File in the run's folder."""


class CostMeter(L.Callback):
    """Measure a training and write ``cost.json`` to the run's folder; a resumed run continues from its checkpoint.

    Seconds are those of training batches alone, loading included, validation and start-up not. Peak memory is that of
    the accelerator's allocator, or on a CPU the largest resident size of the process while it ran.

    Args:
        watts: assumed power of the devices together; without it no energy is given.
    """

    def __init__(self, watts: float | None = None) -> None:
        self.watts = watts
        self.seconds = 0.0
        self.samples = 0
        self.peak_mb: float | None = None
        self.parameters: dict[str, int] = {}
        self._since: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Reset the peak of memory."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_resident_peak()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the parameters, once every layer exists."""
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        self.parameters = {
            "parameters": sum(size for size, _ in sizes),
            "trainable_parameters": sum(size for size, trained in sizes if trained),
        }

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Count the samples of all devices."""
        self.samples += len(args[2]["index"]) * trainer.world_size
        self._lap()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._lap()
        self._since = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock again; the validation may lie in the middle of an epoch."""
        if not trainer.sanity_checking:
            self._since = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        self.peak_mb = max(self.peak_mb or 0.0, _peak_mb() or 0.0) or None
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COST).write_text(json.dumps(self.cost()))

    def _lap(self) -> None:
        if self._since is not None:
            now = time.monotonic()
            self.seconds += now - self._since
            self._since = now

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues from."""
        return {"seconds": self.seconds, "samples": self.samples, "peak_mb": max(self.peak_mb or 0, _peak_mb() or 0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self.seconds, self.samples, self.peak_mb = (state_dict[key] for key in ("seconds", "samples", "peak_mb"))

    def cost(self) -> dict[str, Any]:
        """Return the :class:`~medvlp.benchmark.gridfile.Cost` so far, as a dictionary."""
        return {
            "seconds": round(self.seconds, 2),
            "samples": self.samples,
            "samples_per_second": round(self.samples / self.seconds, 2) if self.seconds else None,
            "peak_memory_mb": self.peak_mb,
            **self.parameters,
            "device": hardware(),
            "watts": self.watts,
            "energy_kwh": round(self.seconds * self.watts / 3.6e6, 6) if self.watts else None,
        }


class StayStopped(L.Callback):
    """End a resumed training at once if its early stopping had fired before it was interrupted.

    Lightning keeps the count of bad epochs in the checkpoint but not the decision, and would train one epoch more.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if a restored count says so."""
        stopping = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
        if any(c.wait_count >= c.patience for c in stopping):
            trainer.should_stop = True


def _reset_resident_peak() -> None:
    # not Linux, or not allowed: the peak is then that of the whole process
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return int(line.split()[1]) / 1024 if line else None
