"""What ``medvlp fit``, ``validate``, ``test``, ``predict`` run: LightningCLI over methods, tasks and data modules."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

# Imported so that LightningCLI knows their short names.
import medvlp.callbacks
from medvlp.datamodules import DATA_MODULES
from medvlp.errors import ConfigError
from medvlp.registry import import_all
from medvlp.tasks.base import Task
from medvlp.tasks.catalog import TASKS
from medvlp.weights import read_checkpoint

RUN_FOLDER = "${trainer.default_root_dir}"
"""What the paths of loggers and callbacks may start with, so that overlays and options move a run as a whole."""


def _fill_in_run_folder(config: Any, folder: str | os.PathLike) -> None:
    items = config if isinstance(config, list) else [config]
    for arguments in (item.init_args for item in items if getattr(item, "init_args", None)):
        for key, value in vars(arguments).items():
            if isinstance(value, str | os.PathLike) and str(value).startswith(RUN_FOLDER):
                arguments[key] = str(folder) + str(value).removeprefix(RUN_FOLDER)


class CLI(LightningCLI):
    """LightningCLI with run folders in paths, checkpoints looked at first, and embeddings after ``predict``."""

    def _parse_ckpt_path(self) -> None:
        """Looks at the checkpoint before anything is built.

        Lightning would put the checkpoint's hyper-parameters over the config here; the config says what is built.
        """
        path = self.config[self.config.subcommand].get("ckpt_path") if self.config.get("subcommand") else None
        if path and "://" not in str(path) and (os.path.sep in str(path) or str(path).endswith(".ckpt")):
            read_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Fills in the run's folder."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        for part in ("logger", "callbacks"):
            _fill_in_run_folder(config.trainer[part], config.trainer.default_root_dir or ".")

    def before_predict(self) -> None:
        """Refuse tasks, which embed nothing."""
        if isinstance(self.model, Task):
            raise ConfigError(f"{type(self.model).__name__} embeds nothing: predict is for methods, test for tasks")

    def after_predict(self) -> None:
        """Writes what was predicted."""
        path = medvlp.callbacks.write_embeddings(self.trainer)
        print(f"embeddings written to {path}")


def build_cli(argv: Sequence[str] | None = None, run: bool = True) -> LightningCLI:
    """LightningCLI over every registered method, every task and every data module.

    Args:
        argv: with ``run`` a command ("fit", "validate", "test" or "predict") and what follows it, without it the
            options alone; those of the process if None.
        run: run the command; False only builds model, data module and trainer, which are attributes of the result.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import_all()
    for module in DATA_MODULES:
        importlib.import_module(f"medvlp.datamodules.{module}")
    for entry in TASKS.values():
        importlib.import_module(entry.module)
    torch.set_float32_matmul_precision("high")
    words = sys.argv[1:] if argv is None else argv
    return CLI(
        L.LightningModule,  # a method (PretrainModule) or a task (Task)
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        # The loaders shard themselves, so that a resumed run continues with the right sample.
        trainer_defaults={"use_distributed_sampler": False},
        # An evaluation leaves the config that it was trained with in place.
        save_config_callback=SaveConfigCallback if words and words[0] == "fit" else None,
        save_config_kwargs={"overwrite": True},
        auto_configure_optimizers=False,
        run=run,
        # None and not the process's own arguments, about which LightningCLI would warn.
        args=None if argv is None else list(argv),
        parser_kwargs={"prog": "medvlp"},
    )
