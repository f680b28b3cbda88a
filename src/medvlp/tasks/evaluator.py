"""What the tasks share that train nothing: a whole method, its text side, and scores of another part of the split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from medvlp.errors import ConfigError, DataError, NotSupportedError
from medvlp.methods.base import PretrainModule
from medvlp.metrics.samples import Samples
from medvlp.store import sha256_of
from medvlp.tasks.base import Task
from medvlp.tasks.encoder import EncoderSource, source_from


def checked_texts(texts: Sequence[str], what: str) -> list[str]:
    """The texts, if each says something.

    Raises:
        DataError: an empty one.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{what} {number} of {len(texts)} is empty: there is nothing to look for")
    return list(texts)


class Evaluator(Task):
    """A task that trains nothing: ``medvlp test`` is all, and ``medvlp fit`` says so.

    Args:
        encoder: a checkpoint of a method.
        protocol: of the task.
        options: of :class:`~medvlp.tasks.base.Task`.

    Raises:
        NotSupportedError: the method lacks what the task needs, for which tables print "/".
        ConfigError: no checkpoint.
    """

    trains = False
    needs_text: ClassVar[bool] = True
    """Whether texts are embedded."""
    needs_patches: ClassVar[bool] = False
    """Whether cells of images are."""

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
            raise NotSupportedError(f"{method.name} has no text side: {self.task} cannot be asked of it")
        if self.needs_patches and not method.implements("embed_patches"):
            raise NotSupportedError(
                f"{method.name} has no patch embeddings in the joint space: {self.task} cannot be asked of it"
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
        """Embeddings of texts, each made once in the life of the task.

        Args:
            texts: N texts.
            raw: not of unit length.

        Returns:
            (N, d) float32 on the method's device.
        """
        new = [text for text in dict.fromkeys(texts) if (text, raw) not in self._embedded]
        if new:
            rows = self.method.encode_texts(new) if raw else self.method.embed_text(new)
            self._embedded.update({(text, raw): row for text, row in zip(new, rows, strict=True)})
        return torch.stack([self._embedded[text, raw] for text in texts]).to(self.device)

    @torch.no_grad()
    def on_validation_part(self) -> Samples | None:
        """The per-sample columns of the validation part, beside a test.

        Returns:
            Its samples, the same on every rank; None if the split has no such part, or it is empty.
        """
        datamodule = self._datamodule()
        datamodule.setup("validate")
        if datamodule.val_set is None or not len(datamodule.val_set):
            return None
        plugin = self.trainer.precision_plugin
        for batch in datamodule.val_dataloader():  # outside of the context, which changes the type of new tensors
            moved = self.trainer.strategy.batch_to_device(plugin.convert_input(batch))
            with plugin.forward_context():
                self._collect("beside", moved)
        return self._gathered("beside")

    def settings(self) -> dict[str, Any]:
        """As the base class; of a prompt file of the user's the content counts, not the path."""
        settings = super().settings()
        prompts = settings.get("prompts")
        if isinstance(prompts, str) and Path(prompts).is_file():
            settings["prompts"] = sha256_of(Path(prompts))
        return settings

    def on_test_start(self) -> None:
        """Learns what the validation part is for."""
        if not self.wants_validation():
            return
        samples = self.on_validation_part()
        if samples is None:
            rank_zero_info(f"{self.task}: the split has no validation part, so no threshold is chosen on it")
        else:
            self.validated(samples)

    def wants_validation(self) -> bool:
        """Whether thresholds are chosen on the validation part before the test."""
        return False
