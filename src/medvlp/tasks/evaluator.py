"""Base of the tasks without training: a whole method, its text encoder, and thresholds from the validation part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from medvlp.errors import ConfigError, DataError, NotSupportedError
from medvlp.methods.base import PretrainModule
from medvlp.metrics.samples import Samples
from medvlp.store import file_sha256
from medvlp.tasks.base import Task
from medvlp.tasks.encoder import EncoderSource, source_from


def checked_texts(texts: Sequence[str], what: str) -> list[str]:
    """Raise DataError for an empty text; return the list."""
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{what} {number} of {len(texts)} is empty; expected a non-empty text")
    return list(texts)


class Evaluator(Task):
    """A task without training, for ``medvlp test``, that needs the checkpoint of a method.

    Raises:
        NotSupportedError: the method lacks what the task needs; tables print "/" for it.
    """

    trains = False
    needs_text: ClassVar[bool] = True
    """Whether the method needs a text encoder."""
    needs_patches: ClassVar[bool] = False
    """Whether the method needs patch embeddings."""

    def __init__(self, encoder: EncoderSource | None, *, protocol: str, **options: Any) -> None:
        source = source_from(encoder)
        if source.checkpoint is None or source.image is not None:
            raise ConfigError(
                f"{type(self).__name__} needs a whole method: set encoder.checkpoint to a medvlp checkpoint, and leave "
                "encoder.image out"
            )
        super().__init__(encoder, protocol=protocol, keep_method=True, **options)
        method = self.method
        if self.needs_text and not method.has_text:
            raise NotSupportedError(f"{method.name} has no text encoder and does not support {self.task}")
        if self.needs_patches and not method.implements("embed_patches"):
            raise NotSupportedError(
                f"{method.name} has no patch embeddings in the joint space and does not support {self.task}"
            )
        self._embedded: dict[tuple[str, bool], Tensor] = {}

    @property
    def method(self) -> PretrainModule:
        """The method of the checkpoint."""
        method = self.encoder.method
        assert method is not None
        return method

    @torch.no_grad()
    def texts(self, texts: Sequence[str], raw: bool = False) -> Tensor:
        """Embed N texts, each once per task: (N, d) float32 on the method's device, unnormalised if ``raw``."""
        new = [text for text in dict.fromkeys(texts) if (text, raw) not in self._embedded]
        if new:
            rows = self.method.encode_texts(new) if raw else self.method.embed_text(new)
            self._embedded.update({(text, raw): row for text, row in zip(new, rows, strict=True)})
        return torch.stack([self._embedded[text, raw] for text in texts]).to(self.device)

    @torch.no_grad()
    def on_validation_part(self) -> Samples | None:
        """Score the validation part during a test, the same on every rank; None if the split has none."""
        datamodule = self._datamodule()
        datamodule.setup("validate")
        if datamodule.val_set is None or not len(datamodule.val_set):
            return None
        plugin = self.trainer.precision_plugin
        for batch in datamodule.val_dataloader():  # outside of the context, which changes the dtype of new tensors
            moved = self.trainer.strategy.batch_to_device(plugin.convert_input(batch))
            with plugin.forward_context():
                self._collect("beside", moved)
        return self._gathered("beside")

    def settings(self) -> dict[str, Any]:
        """Override: a hash of the content instead of the path of a prompt file."""
        settings = super().settings()
        prompts = settings.get("prompts")
        if isinstance(prompts, str) and Path(prompts).is_file():
            settings["prompts"] = file_sha256(Path(prompts))
        return settings

    def on_test_start(self) -> None:
        """Choose thresholds on the validation part."""
        if not self.wants_validation():
            return
        samples = self.on_validation_part()
        if samples is None:
            rank_zero_info(f"{self.task}: no threshold is chosen, since the split has no validation part")
        else:
            self.validated(samples)

    def wants_validation(self) -> bool:
        """Whether the test needs thresholds from the validation part."""
        return False
