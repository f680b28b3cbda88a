"""What a method writes into its checkpoints and takes back from them."""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from medvlp._version import __version__
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoder, TextEncoderConfig
from medvlp.errors import CheckpointError
from medvlp.methods.averaging import MovingAverage
from medvlp.methods.plain import RUN_FOLDER, plain, swap_folder
from medvlp.prompts import PromptSet, available
from medvlp.text import tokenizer_from_state, tokenizer_state

CHECKPOINT_KEY = "medvlp"
"""Where a checkpoint keeps what :func:`medvlp.load` needs beside the weights."""

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of the weights of a module that it wraps."""


class Checkpoints(L.LightningModule):
    """Plain hyper-parameters, weights, tokenizer and preprocessing: the checkpoint part of a method.

    ``state_dict`` holds the weights to use: with a moving average the averaged ones. Those that training goes on
    with are then under ``current_model_state`` (see :class:`~medvlp.methods.averaging.MovingAverage`).
    """

    name: ClassVar[str]
    has_text: ClassVar[bool]
    has_weights: bool = False
    """Whether the weights were trained or loaded; random ones are not evaluated."""
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
        wanted = _arguments(type(self))
        values = {key: plain(value) for key, value in self.hparams.items() if key in wanted}
        values["image"] = plain(dataclasses.replace(self.image_config, pretrained=False, weights=None))
        if self.has_text:
            values["text"] = plain(
                dataclasses.replace(self.text_config, pretrained=None, architecture=self.text_encoder.architecture)
            )
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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

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
            folder = os.path.realpath(self.trainer.default_root_dir)
            checkpoint["callbacks"] = swap_folder(checkpoint.get("callbacks", {}), folder, RUN_FOLDER)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, MovingAverage):
                    callback.put_average(checkpoint)
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = {name.replace(COMPILED, ""): value for name, value in checkpoint[key].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the tokenizer, preprocessing and label names back."""
        payload = checkpoint.get(CHECKPOINT_KEY)
        if payload is None:
            raise CheckpointError(
                f"{self._checkpoint_path()}this is not a medvlp checkpoint: it has no tokenizer and no method name"
            )
        if payload["method"] != self.name:
            raise CheckpointError(
                f"{self._checkpoint_path()}the checkpoint is of method {payload['method']!r}, not {self.name!r}; use "
                "the config.yaml of the run that wrote it"
            )
        if self.has_text:
            self.attach_tokenizer(tokenizer_from_state(payload["tokenizer"]))
        self.preprocess, self.label_names = dict(payload["preprocess"]), list(payload["label_names"])
        trainer = getattr(self, "_trainer", None)
        if trainer is None and self.prompts is None and payload.get("prompts"):
            stored = payload["prompts"]
            sides = {finding: (tuple(first), tuple(second)) for finding, (first, second) in stored["prompts"].items()}
            self.prompts = PromptSet(stored["name"], stored["version"], sides)
        if trainer is not None:
            folder = os.path.realpath(trainer.default_root_dir)
            checkpoint["callbacks"] = swap_folder(checkpoint.get("callbacks", {}), RUN_FOLDER, folder)
            averages = any(isinstance(callback, MovingAverage) for callback in trainer.callbacks)
            if trainer.state.fn == "fit" and "current_model_state" in checkpoint and not averages:
                rank_zero_warn(
                    f"{self._checkpoint_path()}the checkpoint holds a moving average, and this run keeps none: it goes "
                    "on from the averaged weights; set model.ema_decay to go on from the others"
                )
        if trainer is not None and hasattr(getattr(trainer, "datamodule", None), "attach_tokenizer"):
            self._hand_over(trainer.datamodule)

    def _checkpoint_path(self) -> str:
        """For messages: the file that the trainer is loading, with a colon, or nothing."""
        path = getattr(getattr(self, "_trainer", None), "ckpt_path", None)
        return f"{path}: " if path else ""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As always, but names may carry the mark of ``torch.compile``, and weights that do not fit are our error.

        Raises:
            CheckpointError: names or shapes differ.
        """
        own = {name.replace(COMPILED, ""): name for name in self.state_dict()}
        plainly = {name.replace(COMPILED, ""): value for name, value in state_dict.items()}
        try:
            result = super().load_state_dict(
                {own.get(name, name): value for name, value in plainly.items()}, strict=strict, assign=assign
            )
        except RuntimeError as error:
            raise CheckpointError(
                f"{self._checkpoint_path()}weights do not fit {self.name} as it is configured: "
                f"{' '.join(str(error).split())[:300]}; use the config.yaml of the run that wrote them"
            ) from error
        self.has_weights = True
        return result


def _arguments(kind: type) -> set[str]:
    """Names of the arguments that a class takes, those that it passes on as ``**options`` included."""
    names: set[str] = set()
    for level in kind.__mro__:
        if "__init__" not in vars(level):
            continue
        parameters = inspect.signature(vars(level)["__init__"]).parameters.values()
        names.update(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self")
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names
