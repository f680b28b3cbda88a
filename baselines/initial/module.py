"""Image encoders as they are before pre-training, as checkpoints like any other: random and ImageNet weights."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.errors import ConfigError, NotSupportedError
from medvlp.methods.base import PretrainModule
from medvlp.training.settings import config_from


class RandomInit(PretrainModule):
    """An image encoder with random weights, drawn by the run's seed (``seed_everything``).

    Nothing is trained: ``medvlp fit`` writes ``checkpoints/last.ckpt`` into the run's folder, with the data module's
    preprocessing, and ends before the first step; :meth:`~medvlp.methods.base.PretrainModule.save` writes one without
    any data. There is no text side: tasks that need text refuse the checkpoint, and tables show "/".

    Args:
        image: image encoder; ResNet-50 by default.
        image_size: side of the images in pixels, for encoders with a position table.
    """

    name: ClassVar[str] = "random"
    has_text: ClassVar[bool] = False
    has_weights: bool = True

    def __init__(self, image: ImageEncoderConfig | None = None, image_size: int = 224) -> None:
        super().__init__(image=image, image_size=image_size, prompts=None)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, d): mean over the cells of the last level."""
        return self.image_encoder(images)[-1].mean((2, 3))

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raise NotSupportedError."""
        raise NotSupportedError(f"{self.name} has no text side: it cannot embed texts")

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """``image`` (B, d)."""
        return {"image": self.encode_images(batch["image"])}

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Raise NotSupportedError."""
        raise NotSupportedError(f"{self.name} has nothing to train; medvlp fit writes its checkpoint at once")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimiser that is never stepped; without any, Lightning warns that it will train with none."""
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_fit_start(self) -> None:
        """Write the checkpoint and end the run before its first step."""
        callback: Any = self.trainer.checkpoint_callback
        folder = getattr(callback, "dirpath", None) or Path(self.trainer.default_root_dir) / "checkpoints"
        path = Path(folder) / "last.ckpt"
        self.trainer.save_checkpoint(path)
        rank_zero_info(f"{self.name} has nothing to train: its checkpoint is {path}")
        self.trainer.should_stop = True

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """No-op: there is neither a loss nor a text to choose."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """No-op."""


class ImageNetInit(RandomInit):
    """:class:`RandomInit` with ImageNet weights: timm's, or those of a local file.

    Args:
        image: image encoder, with ``pretrained: true`` (timm's weights of that name, from the hub or timm's cache) or
            ``weights: FILE``; ResNet-50 with timm's weights by default.
        image_size: side of the images in pixels, for encoders with a position table.
    """

    name: ClassVar[str] = "imagenet"

    def __init__(self, image: ImageEncoderConfig | None = None, image_size: int = 224) -> None:
        image = ImageEncoderConfig(pretrained=True) if image is None else config_from(ImageEncoderConfig, image)
        super().__init__(image=image, image_size=image_size)
        # The configuration in a checkpoint names no source, since the checkpoint is the source.
        self.has_weights = bool(image.pretrained or image.weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ConfigError rather than call random weights ImageNet's."""
        if not self.has_weights:
            raise ConfigError("imagenet needs weights: set image.pretrained: true, or image.weights: FILE")
        super().on_save_checkpoint(checkpoint)
