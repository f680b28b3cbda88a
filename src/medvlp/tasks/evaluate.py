"""Evaluation of a model on a task in one call, for notebooks."""

import inspect
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import ModelCheckpoint

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.errors import ConfigError, check_choice
from medvlp.methods.base import PretrainModule
from medvlp.tasks.base import Task
from medvlp.tasks.catalog import TASKS
from medvlp.tasks.encoder import EncoderSource


def evaluate(
    model: str | Path | PretrainModule | EncoderSource,
    task: str | Task,
    data: L.LightningDataModule,
    *,
    folder: str | Path | None = None,
    epochs: int = 20,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Fit the task, if it trains, score the test part, and return the result rows.

    Classes, files and numbers are those of ``medvlp fit`` and ``medvlp test``. The epoch with the lowest validation
    loss is scored, if the split has a validation part.

    Args:
        model: a checkpoint's path, a method, a timm model's name (random weights), or an
            :class:`~medvlp.tasks.encoder.EncoderSource`.
        task: a name of :data:`medvlp.tasks.catalog.TASKS`, or a task with its own encoder, in place of ``model``.
        data: a data module made for the task.
        folder: of results, predictions and checkpoints; None for a temporary one, which is deleted.
        epochs: of training, if any.
        trainer: further arguments of Lightning's trainer.
        **options: of the task: protocol, frozen, resamples, …

    Returns:
        One row per metric with the keys of :mod:`medvlp.results`.
    """
    if isinstance(task, str):
        check_choice("task", task, TASKS)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(folder) if folder is not None else Path(scratch)
        if not isinstance(task, Task):
            kind = TASKS[task].load()
            if "image_size" in inspect.signature(kind).parameters:
                options.setdefault("image_size", getattr(data, "image_size", 224))
            task = kind(encoder=_source(model, Path(scratch)), **options)
        elif options:
            raise ConfigError(f"{next(iter(options))} is an argument of the task, which is already built")
        keep = ModelCheckpoint(dirpath=root / "checkpoints", monitor="val/loss", filename="best")
        run = L.Trainer(
            **{
                "default_root_dir": root,
                "max_epochs": epochs,
                "callbacks": [keep] if task.trains else [],
                "enable_checkpointing": task.trains,
                "logger": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                **(trainer or {}),
            }
        )
        best = None
        if task.trains:
            run.fit(task, datamodule=data)
            best = keep.best_model_path or None
        run.test(task, datamodule=data, ckpt_path=best, verbose=False)
        return pd.DataFrame([asdict(row) for row in task.rows])


def _source(model: str | Path | PretrainModule | EncoderSource, scratch: Path) -> EncoderSource:
    if isinstance(model, EncoderSource):
        return model
    if isinstance(model, PretrainModule):
        path = scratch / "model.ckpt"
        model.save(path)
        return EncoderSource(checkpoint=str(path))
    if Path(model).suffix == ".ckpt" or Path(model).is_file():
        return EncoderSource(checkpoint=str(model))
    return EncoderSource(image=ImageEncoderConfig(name=str(model)))
