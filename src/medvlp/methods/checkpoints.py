"""What a method writes into its checkpoints and takes back from them."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from medvlp._version import __version__
from medvlp.encoders.image import ImageEncoderConfig, without_image_sources
from medvlp.encoders.loading import check_finite, check_kind
from medvlp.encoders.text import TextEncoder, TextEncoderConfig, without_text_sources
from medvlp.errors import CheckpointError, NotSupportedError
from medvlp.methods.averaging import MovingAverage
from medvlp.methods.checkpoint_io import write_checkpoint
from medvlp.methods.payload import (
    CHECKPOINT_KEY,
    arguments,
    check_optimizer,
    conform,
    mapping,
    read_payload,
    read_training_state,
    restoring,
    weights_of,
)
from medvlp.methods.plain import RUN_FOLDER, plain, swap_folder
from medvlp.prompts import PromptSet, available
from medvlp.text import tokenizer_from_state, tokenizer_state

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of the weights of a module that it wraps."""


class Restorable(L.LightningModule):
    """A module whose weights and callbacks come back from files that nobody vouches for."""

    has_weights: bool = False
    """Whether the weights were trained or loaded; random ones are not evaluated."""
    _stored_states: tuple[int, int] | None = None

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> Any:
        """Override: Lightning would build whatever the file's hyper-parameters name.

        Raises:
            NotSupportedError: always.
        """
        raise NotSupportedError(f"{cls.__name__}.load_from_checkpoint: use medvlp.load(path) for a method's checkpoint")

    def _checkpoint_path(self) -> str:
        """For messages: the file that the trainer is loading, with a colon, or nothing."""
        path = getattr(getattr(self, "_trainer", None), "ckpt_path", None)
        return f"{path}: " if path else ""

    def _store_callbacks(self, checkpoint: dict[str, Any]) -> None:
        """Writes the run's folder as a mark, so that runs can be moved."""
        folder = os.path.realpath(self.trainer.default_root_dir)
        checkpoint["callbacks"] = swap_folder(checkpoint.get("callbacks", {}), folder, RUN_FOLDER)

    def _restore_callbacks(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of :meth:`_store_callbacks`.

        Raises:
            CheckpointError: a path that leads out of its folder; callbacks delete the older checkpoints they name.
        """
        folder = os.path.realpath(self.trainer.default_root_dir)
        with restoring(self._checkpoint_path()):
            states = swap_folder(mapping(checkpoint.get("callbacks", {}), "callbacks"), RUN_FOLDER, folder)
            for name, state in states.items():
                mapping(state, f"callbacks.{name}")
        if astray := [text for text in _texts(states) if ".." in text.split(os.sep) or "://" in text]:
            raise CheckpointError(
                f"{self._checkpoint_path()}a callback's state names {astray[0]!r}; expected local paths"
            )
        checkpoint["callbacks"] = states

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Override: names may carry the mark of ``torch.compile``, and weights that do not fit are our error.

        Raises:
            CheckpointError: names, shapes or kinds of numbers differ, or a value is NaN or infinite.
        """
        where = self._checkpoint_path()
        own = {name.replace(COMPILED, ""): name for name in self.state_dict()}
        with restoring(where):
            state_dict = weights_of({"state_dict": state_dict})
        plainly = {name.replace(COMPILED, ""): value for name, value in state_dict.items()}
        given = {own.get(name, name): value for name, value in plainly.items()}
        check_kind(where, given, self.state_dict())
        try:
            result = super().load_state_dict(given, strict=strict, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(
                f"{where}weights do not fit {getattr(self, 'name', type(self).__name__)} as it is "
                f"configured: {' '.join(str(error).split())[:300]}; use the config.yaml of the run that wrote them"
            ) from error
        check_finite(where, self)
        self.has_weights = True
        return result

    def _check_training_state(self, checkpoint: dict[str, Any]) -> None:
        """Raises unless training can go on from the checkpoint."""
        if self.trainer.state.fn == "fit":
            with restoring(self._checkpoint_path()):
                self._stored_states = read_training_state(checkpoint)

    def on_train_start(self) -> None:
        """Check what optimisers and schedules took from a checkpoint, which neither torch nor Lightning does.

        Raises:
            CheckpointError: too few states, settings of another type, or moments that do not fit the weights.
        """
        if not self.trainer.ckpt_path:
            return
        with restoring(self._checkpoint_path()):
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            if any(
                n < m
                for n, m in zip(
                    self._stored_states or (0, 0), (len(self.trainer.optimizers), len(schedulers)), strict=True
                )
            ):
                raise CheckpointError("it holds another number of optimisers or schedules than the config; use its own")
            for scheduler in schedulers:
                conform(scheduler.last_epoch, int, "lr_schedulers: last_epoch")
            for optimizer in self.trainer.optimizers:
                check_optimizer(optimizer)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in (*value, *value.values()):
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


class Checkpoints(Restorable):
    """Plain hyper-parameters, weights, tokenizer and preprocessing: the checkpoint part of a method.

    ``state_dict`` holds the weights to use: with a moving average the averaged ones. Those that training goes on
    with are then under ``current_model_state`` (see :class:`~medvlp.methods.averaging.MovingAverage`).
    """

    name: ClassVar[str]
    has_text: ClassVar[bool]
    image_config: ImageEncoderConfig
    text_config: TextEncoderConfig
    text_encoder: TextEncoder
    prompts: PromptSet | None
    tokenizer: Any
    preprocess: dict[str, Any]
    label_names: list[str]

    def attach_tokenizer(self, tokenizer: Any) -> None:
        """Sets the tokenizer."""
        raise NotImplementedError

    def _hand_over(self, datamodule: Any) -> None:
        raise NotImplementedError

    def hyperparameters(self) -> dict[str, Any]:
        """The ``__init__`` arguments as plain values, with encoders that build without hub or files."""
        wanted = arguments(type(self))
        values = {key: plain(value) for key, value in self.hparams.items() if key in wanted}
        values["image"] = plain(without_image_sources(self.image_config))
        if self.has_text:
            config = dataclasses.replace(self.text_config, architecture=self.text_encoder.architecture)
            values["text"] = plain(without_text_sources(config))
        if values.get("prompts") not in available():  # a file of this machine; the checkpoint holds its content
            values["prompts"] = None
        return {key: value for key, value in values.items() if key in wanted}

    def save(self, path: str | Path) -> None:
        """Writes a checkpoint without a trainer: for :func:`medvlp.load`, not for going on with training.

        Args:
            path: the file; its folder is made.

        Raises:
            CheckpointError: no tokenizer yet, or a hyper-parameter that is no plain value.
        """
        import lightning.pytorch as pl

        checkpoint: dict[str, Any] = {
            "state_dict": {name: value.detach().clone() for name, value in self.state_dict().items()},
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": pl.__version__,
        }
        self.on_save_checkpoint(checkpoint)
        write_checkpoint(checkpoint, path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves only plain hyper-parameters, weights and the tokenizer in the checkpoint."""
        if self.has_text and self.tokenizer is None:
            raise CheckpointError("a checkpoint needs the tokenizer: fit with a medvlp datamodule, or attach one")
        for key in [key for key in checkpoint if key.startswith("datamodule_hyper") or key == "hparams_name"]:
            del checkpoint[key]
        checkpoint["hyper_parameters"] = self.hyperparameters()
        checkpoint[CHECKPOINT_KEY] = {
            "method": self.name,
            "version": __version__,
            "hyperparameters": checkpoint["hyper_parameters"],
            "tokenizer": tokenizer_state(self.tokenizer) if self.has_text else None,
            "preprocess": plain(self.preprocess),
            "label_names": list(self.label_names),
            "prompts": plain(self.prompts),
        }
        if getattr(self, "_trainer", None) is not None:
            self._store_callbacks(checkpoint)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, MovingAverage):
                    callback.put_average(checkpoint)
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = {name.replace(COMPILED, ""): value for name, value in checkpoint[key].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the tokenizer, preprocessing and label names back."""
        if CHECKPOINT_KEY not in checkpoint:
            raise CheckpointError(
                f"{self._checkpoint_path()}this is not a medvlp checkpoint: it has no tokenizer and no method name"
            )
        with restoring(self._checkpoint_path()):
            payload = read_payload(checkpoint)
            if payload.method != self.name:
                raise CheckpointError(
                    f"the checkpoint is of method {payload.method!r}, not {self.name!r}; use the config.yaml of the "
                    "run that wrote it"
                )
            if self.has_text:
                self.attach_tokenizer(tokenizer_from_state(payload.tokenizer or {}))
        self.preprocess, self.label_names = payload.preprocess, payload.label_names
        trainer = getattr(self, "_trainer", None)
        if trainer is None and self.prompts is None:
            self.prompts = payload.prompts
        if trainer is not None:
            self._restore_callbacks(checkpoint)
            self._check_training_state(checkpoint)
            averages = any(isinstance(callback, MovingAverage) for callback in trainer.callbacks)
            if trainer.state.fn == "fit" and "current_model_state" in checkpoint and not averages:
                rank_zero_warn(
                    f"{self._checkpoint_path()}the checkpoint holds a moving average, and this run keeps none: it goes "
                    "on from the averaged weights; set model.ema_decay to go on from the others"
                )
        if trainer is not None and hasattr(getattr(trainer, "datamodule", None), "attach_tokenizer"):
            self._hand_over(trainer.datamodule)
