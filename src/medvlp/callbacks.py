"""Callbacks that write tables, embeddings and figures of a run."""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from matplotlib.figure import Figure
from rich.table import Table

from medvlp import viz
from medvlp._version import __version__
from medvlp.console import console
from medvlp.errors import NotSupportedError
from medvlp.metrics.samples import SampleStore
from medvlp.seeding import run_seed


class ZeroShotReport(L.Callback):
    """Zero-shot AUROC per finding on the validation split before and after training, as JSON and as a table.

    "Before" is Lightning's sanity check ahead of training, so ``trainer.num_sanity_val_steps`` must be −1; "after" is
    the last validation. A resumed run keeps its "before".

    Args:
        filename: file in ``trainer.default_root_dir``.
    """

    def __init__(self, filename: str = "zero_shot.json") -> None:
        self.filename = filename
        self.before: dict[str, float] = {}

    def _path(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.filename

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keep "before"."""
        self.before = dict(pl_module.evaluation.get("zero_shot", {}))

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the file and print the table."""
        after = dict(pl_module.evaluation.get("zero_shot", {}))
        path = self._path(trainer)
        if not self.before and path.is_file():
            self.before = json.loads(path.read_text()).get("before", {})
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "before": self.before,
            "after": after,
            "studies": pl_module.evaluation.get("studies", 0),
            "prompts": pl_module.prompts.name if pl_module.prompts else None,
            "epochs": trainer.current_epoch,
            "method": pl_module.name,
            "seed": run_seed(),
            "split_sha256": _split_hash(trainer),
            "versions": {"medvlp": __version__, "torch": torch.__version__, "lightning": L.__version__},
        }
        path.write_text(json.dumps(content, indent=1))
        table = Table(title=f"Zero-shot AUROC on {content['studies']} held-out studies")
        for column in ("finding", "before", "after"):
            table.add_column(column, justify="left" if column == "finding" else "right")
        names = [name for name in after if name != "mean"]
        for name in [*sorted(names), "mean"]:
            values = [side.get(name, math.nan) for side in (self.before, after)]
            table.add_row(name, *[f"{value:.3f}" for value in values], style="bold" if name == "mean" else None)
        console().print(table)
        console().print(f"written to {path}", soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Keep "before" in checkpoints."""
        return {"before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take "before" back."""
        self.before = dict(state_dict["before"])


def _split_hash(trainer: L.Trainer) -> str | None:
    """Hash of the validation ids, in order: only results of equal hashes are comparable."""
    dataset = getattr(getattr(trainer, "datamodule", None), "val_set", None)
    return None if dataset is None else hashlib.sha256("\n".join(dataset.ids).encode()).hexdigest()


class ProgressLines(L.Callback):
    """Log a line at the end of each epoch, and within it every minute: a progress bar for output that is no terminal.

    Args:
        seconds: between two lines of one epoch.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a line if the last one is old."""
        if time.monotonic() - self._last >= self.seconds:
            self._log(trainer, f" batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's line."""
        self._log(trainer)

    def _log(self, trainer: L.Trainer, place: str = "") -> None:
        self._last = time.monotonic()
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""  # −1 where steps or time limit the run
        values = "".join(f", {name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        rank_zero_info(f"epoch {trainer.current_epoch + 1}{of}{place}: step {trainer.global_step}{values}")


class EmbeddingsWriter(L.Callback):
    """Writes the output of ``predict`` to ``embeddings.npz`` in the run's folder, each row of the dataset once.

    Arrays: ``id`` (N,) str, ``index`` (N,) dataset rows in ascending order, ``image`` and ``text`` (N, d) float32,
    L2-normalised; no ``text`` from a method without a text side.
    """

    def __init__(self) -> None:
        self._store: SampleStore | None = None

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a batch's embeddings."""
        columns = {side: outputs[side] for side in ("image", "text") if side in outputs}
        if self._store is None:
            self._store = SampleStore(list(columns)).to(pl_module.device)
        self._store.update(outputs["index"], **columns)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the rows of all devices and write them."""
        assert self._store is not None
        samples = self._store.compute()
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "embeddings.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = trainer.datamodule.test_set.ids  # type: ignore[attr-defined]
        arrays: dict[str, Any] = {name: column.cpu().numpy() for name, column in samples.columns.items()}
        index = samples.index.cpu().numpy()
        np.savez(path, id=np.array([ids[i] for i in index]), index=index, **arrays)
        console().print(f"embeddings written to {path}", soft_wrap=True)


class StudyFigures(L.Callback):
    """Draws a few studies after each validation, to ``figures/`` in the run's folder: image, the method's maps, report.

    The studies are the first of the validation split with a positive label, then the first others.

    Args:
        studies: number of studies.
        every_n_epochs: epochs from one figure to the next.
    """

    def __init__(self, studies: int = 4, every_n_epochs: int = 1) -> None:
        self.studies = studies
        self.every_n_epochs = every_n_epochs
        self._batch: dict[str, Any] | None = None

    def _fixed(self, trainer: L.Trainer) -> Any:
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        dataset, collate = loader.dataset, loader.collate_fn
        labels = dataset.labels
        positive = (labels == 1).any(1) if labels.shape[1] else torch.zeros(len(dataset), dtype=torch.bool)
        order = torch.argsort(~positive, stable=True)[: self.studies].tolist()
        return collate([dataset[i] for i in order])

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draw the figure."""
        if trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs or not hasattr(trainer, "datamodule"):
            return
        if self._batch is None:
            self._batch = self._fixed(trainer)
        batch = {
            key: value.to(pl_module.device) if isinstance(value, torch.Tensor) else value
            for key, value in self._batch.items()
        }
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            maps = pl_module.explain(batch)
        if not maps:
            return
        figure = viz.study_figure(
            [image.float().cpu().numpy() for image in batch["image"]],
            {title: [value.float().cpu().numpy() for value in values] for title, values in maps.items()},
            list(batch["text"]),
            [str(item)[:24] for item in batch["id"]],
        )
        viz.save(figure, Path(trainer.default_root_dir) / "figures" / f"epoch={trainer.current_epoch:03d}.png")


class MethodFigures(L.Callback):
    """Base of callbacks that draw what one method has learned, in ``medvlp predict``, on the first process.

    A subclass sets :attr:`method` and overrides :meth:`reset`, :meth:`collect` and :meth:`draw`.
    """

    method: ClassVar[type[L.LightningModule]]
    folder: ClassVar[str] = "figures"
    """Where figures go, in the run's folder."""

    def reset(self) -> None:
        """Forget the previous run."""

    def collect(self, trainer: L.Trainer, model: Any, outputs: Any, batch: Any) -> None:
        """Keep or draw what is needed of a batch and of the output of ``predict_step``."""

    def draw(self, trainer: L.Trainer, model: Any) -> None:
        """Draw what was collected."""

    def save(self, trainer: L.Trainer, figure: Figure, name: str) -> None:
        """Write a figure into :attr:`folder`."""
        viz.save(figure, Path(trainer.default_root_dir) / self.folder / name)

    def checked(self, model: Any) -> Any:
        """Return the model; raise NotSupportedError if it is of another method."""
        if not isinstance(model, self.method):
            name = type(self).__name__
            raise NotSupportedError(f"{name} draws what {self.method.__name__} has learned, not {type(model).__name__}")
        return model

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the method and :meth:`reset`."""
        self.checked(pl_module)
        self.reset()

    @rank_zero_only
    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """:meth:`collect`."""
        self.collect(trainer, pl_module, outputs, batch)

    @rank_zero_only
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """:meth:`draw`."""
        self.draw(trainer, pl_module)
