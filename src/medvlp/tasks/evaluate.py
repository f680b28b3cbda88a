"""Any model through any task in one call, for notebooks."""

import inspect
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import ModelCheckpoint

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.errors import ConfigError
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
    """Trains what the task trains, scores the test part, and returns the result rows.

    The same classes, files and numbers as ``medvlp fit`` and ``medvlp test``. Of the epochs the one with the lowest
    validation loss is scored, if the split has a validation part.

    Args:
        model: a checkpoint's path, a method, a timm model's name (random weights), or an
            :class:`~medvlp.tasks.encoder.EncoderSource`.
        task: a name of :data:`medvlp.tasks.catalog.TASKS`, or a task, whose own encoder then counts.
        data: a data module made for the task.
        folder: where results, predictions and checkpoints go; a temporary one, gone afterwards, if None.
        epochs: of training, where there is any.
        trainer: further arguments of Lightning's trainer.
        **options: of the task: protocol, frozen, resamples, …

    Returns:
        One row per metric with the keys of :mod:`medvlp.results`.

    Raises:
        ConfigError: no such task; and from the task.
    """
    if isinstance(task, str) and task not in TASKS:
        raise ConfigError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(folder) if folder is not None else Path(scratch)
        if not isinstance(task, Task):
            kind = TASKS[task].load()
            if "image_size" in inspect.signature(kind).parameters:
                options.setdefault("image_size", getattr(data, "image_size", 224))
            task = kind(encoder=_source(model, Path(scratch)), **options)
        elif options:
            raise ConfigError(f"{next(iter(options))} belongs to the task, which is given as it is")
        keep = ModelCheckpoint(dirpath=place / "checkpoints", monitor="val/loss", filename="best")
        run = L.Trainer(
            **{
                "default_root_dir": place,
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
