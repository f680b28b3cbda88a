"""What MaCo's variants set, and the settings of its image encoder."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from medvlp_baselines.maco.autoencoder import NEEDS_TRANSFORMER

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.errors import ConfigError
from medvlp.training.optim import OptimConfig
from medvlp.training.settings import config_from


@dataclass(frozen=True)
class Settings:
    """Settings of one variant."""

    super_resolution: bool
    positions: Literal["mae", "official"]
    text: TextEncoderConfig
    optim: OptimConfig


def _bert(layers: int) -> TextEncoderConfig:
    return TextEncoderConfig(
        hidden_size=768,
        num_layers=layers,
        num_heads=12,
        vocab_size=30000,
        max_length=100,
        pooling="pooler",
        dropout=True,
    )


def _adamw(lr: float, warmup: float) -> OptimConfig:
    return OptimConfig(lr=lr, weight_decay=0.05, betas=(0.9, 0.95), warmup=warmup)


VARIANTS: dict[str, Settings] = {
    "paper": Settings(super_resolution=False, positions="mae", text=_bert(12), optim=_adamw(4.5e-4, 2 / 30)),
    "official": Settings(super_resolution=True, positions="official", text=_bert(6), optim=_adamw(2.5e-4, 2 / 51)),
}


def encoder_config(image: ImageEncoderConfig | None, side: int) -> ImageEncoderConfig:
    """Return the settings of an image encoder for images of ``side`` pixels, with its final norm.

    Raises:
        ConfigError: not a plain vision transformer.
    """
    given = ImageEncoderConfig("vit_base_patch16_224") if image is None else config_from(ImageEncoderConfig, image)
    if given.upsample_to is not None:
        raise ConfigError("image.upsample_to: MaCo's encoder takes images as they come; leave it at null")
    if not given.name.startswith(("vit_", "deit_")):  # timm would complain of an option that nobody set
        raise ConfigError(NEEDS_TRANSFORMER)
    return dataclasses.replace(given, final_norm=True, options={**given.options, "img_size": side})
