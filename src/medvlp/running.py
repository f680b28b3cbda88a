"""What ``medvlp fit``, ``validate``, ``test``, ``predict`` run: LightningCLI over methods, tasks and data modules."""

import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported so that LightningCLI knows their short names.
import medvlp.callbacks
from medvlp.compat import CLIHooks
from medvlp.datamodules import DATA_MODULES
from medvlp.errors import CheckpointError, ConfigError, MedVLPError, check_range
from medvlp.io.yaml import parse_yaml, read_yaml
from medvlp.registry import import_all
from medvlp.tasks.base import Task
from medvlp.tasks.catalog import TASKS
from medvlp.training.checkpoint_io import check_checkpoint
from medvlp.weights import read_checkpoint

RUN_FOLDER = "${trainer.default_root_dir}"
"""What the paths of loggers and callbacks may start with, so that overlays and options move a run as a whole."""


def _fill_in_run_folder(config: Any, folder: str | os.PathLike[str]) -> None:
    items = config if isinstance(config, list) else [config]
    for arguments in (item.init_args for item in items if getattr(item, "init_args", None)):
        for key, value in vars(arguments).items():
            if isinstance(value, str | os.PathLike) and str(value).startswith(RUN_FOLDER):
                arguments[key] = str(folder) + str(value).removeprefix(RUN_FOLDER)


def _check_config(path: str, seen: set[str]) -> None:
    """Raise where a config file, or one that it names, is not sound YAML; jsonargparse's errors name no file."""
    if path in seen or not os.path.isfile(path):
        return
    seen.add(path)
    read_yaml(path)
    with open(path, encoding="utf-8") as file:
        names = [token.value for token in yaml.scan(file) if isinstance(token, yaml.ScalarToken)]
    for name in names:
        if name.endswith((".yaml", ".yml")):
            _check_config(os.path.join(os.path.dirname(path), name), seen)


class _Parser(LightningArgumentParser):
    """Checks config files before they are parsed, and says what is wrong in one line."""

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Override: refuse a file in which a key stands twice."""
        _check_config(os.fspath(path), set())
        return super().parse_path(path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Override: without the usage, which has as many lines as there are options."""
        if not self.exit_on_error:  # a parser within another, which tries something else
            super().error(message, ex)
        line = " ".join(message.split())
        line = line if len(line) < 1000 else f"{line[:1000]} …"
        self.exit(2, f"medvlp: error: {line} (options: {self.prog.replace(' [options]', '')} --help)\n")


def _load_yaml(text: str) -> Any:
    """What jsonargparse reads of files and options, if each key stands once."""
    value = _JSONARGPARSE_YAML(text)
    if isinstance(value, dict | list):
        parse_yaml(text, "configuration")
    return value


_JSONARGPARSE_YAML = get_loader("yaml")
set_loader("yaml", _load_yaml, (yaml.YAMLError, RecursionError))


_TRAINER = {
    "[0, inf)": ("gradient_clip_val", "log_every_n_steps", "check_val_every_n_epoch"),
    "(0, inf)": ("val_check_interval", "limit_train_batches"),
    "[1, inf)": ("accumulate_grad_batches",),
}
"""Settings whose range Lightning does not check, or at whose edge a run does nothing."""


def _checkpoints(config: Any) -> list[Path]:
    """Checkpoints in the folders into which a run with this config writes its own."""
    callbacks = config.trainer.callbacks or []
    arguments = [item.get("init_args") or {} for item in (callbacks if isinstance(callbacks, list) else [callbacks])]
    named = {Path(folder) for folder in (given.get("dirpath") for given in arguments) if folder}
    folders = {*named, Path(config.trainer.default_root_dir or ".") / "checkpoints"}
    return sorted(path for folder in folders for path in folder.glob("*.ckpt"))


class CLI(CLIHooks, LightningCLI):
    """LightningCLI with run folders in paths, checkpoints looked at first, and embeddings after ``predict``."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Override: check config files that options such as ``--model`` name; ``--config`` checks its own."""
        for word in sys.argv[1:] if args is None else args:
            name = str(word).partition("=")[2] if str(word).startswith("--") else str(word)
            if name.endswith((".yaml", ".yml")):
                _check_config(name, set())
        super().parse_arguments(parser, args)

    def check_ckpt_path(self) -> None:
        """Override: read the checkpoint, and leave the config as it is: it says what is built."""
        if not self.config.get("subcommand"):
            return
        config = self.config[self.config.subcommand]
        if not isinstance(config.trainer, Namespace):
            raise ConfigError(f"trainer must be a mapping of settings, not {config.trainer!r}")
        path, root = config.get("ckpt_path"), Path(config.trainer.default_root_dir or ".")
        if path == "best" or (path == "hpc" and not any(root.glob("hpc_ckpt_*.ckpt"))):
            there = ", ".join(map(str, _checkpoints(config))) or f"none in {root}"
            raise CheckpointError(f"--ckpt_path {path} is known to the run that trained alone; name the file ({there})")
        if path and path not in ("last", "hpc"):  # which Lightning looks for in the run's folder
            if "://" not in str(path):
                check_checkpoint(path)
            read_checkpoint(path)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what LightningCLI does not know."""
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="fit: delete the checkpoints of an earlier run in the folder"
        )

    def set_seed(self) -> None:
        """Override: refuse what is no seed in one line."""
        try:
            super().set_seed()
        except ValueError as error:
            raise ConfigError(f"seed_everything: {error}") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Override: ``weights_only`` is no choice of the user's, since anything else runs code of the file."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def run_subcommand(self, subcommand: str) -> None:
        """Override: name the checkpoint that cannot be restored, and the folder that cannot be written."""
        try:
            super().run_subcommand(subcommand)
        except OSError as error:
            if error.errno is not None and not error.filename:  # a write that failed; the config says where
                error.filename = self.trainer.default_root_dir
            raise
        except MedVLPError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            names = [frame.name for frame in frames if frame.filename.endswith("checkpoint_connector.py")]
            if not any(name.lstrip("_").startswith(("restore", "resume_start")) for name in names):
                raise
            raise CheckpointError(
                f"{self.trainer.ckpt_path}: cannot be restored; it is damaged, or of another run "
                f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            ) from error

    def subcommand_arguments(self, subcommand: str) -> dict[str, Any]:
        """Override: no code of a checkpoint runs."""
        return {**super().subcommand_arguments(subcommand), "weights_only": True}

    def instantiate_classes(self) -> None:
        """Override: values that a library refuses are told in one line, with the place that refused them."""
        try:
            super().instantiate_classes()
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            first: BaseException = error
            # jsonargparse wraps what a constructor raises, once per Union
            while first.__cause__ is not None and not isinstance(first, MedVLPError):
                first = first.__cause__
            if isinstance(first, MedVLPError | OSError):
                raise first from None
            place = traceback.extract_tb(first.__traceback__)[-1]
            text = " ".join(str(first).split())[:500] or type(first).__name__
            where = f"{Path(place.filename).name}, line {place.lineno}"
            raise ConfigError(f"the settings cannot be built: {text} ({where})") from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Override: settings that Lightning refuses are told in one line."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigError(f"trainer: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Fill in the run's folder, and refuse to train over an earlier run's checkpoints."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        for interval, names in _TRAINER.items():
            check_range(interval, **{f"trainer.{name}": config.trainer.get(name) for name in names})
        for part in ("logger", "callbacks"):
            _fill_in_run_folder(config.trainer[part], config.trainer.default_root_dir or ".")
        # not stored in the run's own config, with which one goes on
        overwrite = config.pop("overwrite")
        self._replaced: list[Path] = []
        if overwrite and config.get("ckpt_path"):
            raise ConfigError("--overwrite true starts again and --ckpt_path goes on; give one of them")
        if self.subcommand != "fit" or config.ckpt_path or config.trainer.fast_dev_run:
            return
        root = Path(config.trainer.default_root_dir or ".")
        if SLURMEnvironment.detect() and any(root.glob("hpc_ckpt_*.ckpt")):
            return  # a requeued job, which Lightning resumes
        self._replaced = _checkpoints(config)
        if self._replaced and not overwrite:
            raise ConfigError(
                f"{self._replaced[-1]}: {root} holds an earlier run; resume it with --ckpt_path last, delete its "
                "checkpoints with --overwrite true, or name another --trainer.default_root_dir"
            )

    def before_fit(self) -> None:
        """Delete the checkpoints of a run that is replaced: "last" must never mean one of them."""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            for path in self._replaced:
                path.unlink(missing_ok=True)
        if self.trainer.progress_bar_callback is not None and not sys.stdout.isatty():
            self.trainer.callbacks.append(medvlp.callbacks.ProgressLines())  # type: ignore[attr-defined]

    def before_predict(self) -> None:
        """Refuse tasks, which embed nothing; write what methods predict."""
        if isinstance(self.model, Task):
            raise ConfigError(f"{type(self.model).__name__} embeds nothing: predict is for methods, test for tasks")
        self.trainer.callbacks.append(medvlp.callbacks.EmbeddingsWriter())  # type: ignore[attr-defined]


_NOISE = (
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own call into torch
    r"Found \d+ module\(s\) in eval mode",  # encoders that are frozen or have no dropout are meant to be
)
"""Starts of warnings about which a user can do nothing."""


def _silence_noise() -> None:
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For" not in str(record.msg)


def build_cli(argv: Sequence[str] | None = None, run: bool = True) -> LightningCLI:
    """LightningCLI over every registered method, every task and every data module.

    Args:
        argv: with ``run`` a command ("fit", "validate", "test" or "predict") and what follows it, without it the
            options alone; those of the process if None.
        run: run the command; False only builds model, data module and trainer, which are attributes of the result.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    _silence_noise()
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
        parser_class=_Parser,
        parser_kwargs={"prog": "medvlp"},
    )
