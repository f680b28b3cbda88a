"""Image encoders: any timm model that gives feature maps."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from medvlp.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Which image encoder.

    Args:
        name: a timm model with ``features_only`` support ("resnet50", "convnext_tiny", "vit_base_patch16_224", …).
        pretrained: load timm's weights for it (needs the model hub, or timm's cache).
        weights: a local file (safetensors, or a torch file of tensors alone) with the encoder's weights; keys may
            carry a classifier on top, and the prefixes "module.", "model.", "encoder." or "backbone.".
        depth: keep this many levels of the pyramid and no deeper layers; None keeps all.
        channels_last: keep activations in channels-last memory, faster for CNNs on GPUs and CPUs alike.
        options: further arguments of ``timm.create_model`` (``output_stride``, ``drop_path_rate``, …).
    """

    name: str = "resnet50"
    pretrained: bool = False
    weights: str | None = None
    depth: int | None = None
    channels_last: bool = True
    options: dict = field(default_factory=dict)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of tensors without running anything in it.

    Args:
        path: safetensors, or a torch file readable with ``weights_only=True``; the tensors may sit at the top level
            or under "state_dict" or "model".

    Returns:
        Name to tensor.

    Raises:
        CheckpointError: the file is missing, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; pass the path of a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read as plain weights ({type(error).__name__}); convert it to safetensors where you "
            "trust its origin"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__} instead of named weights")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _names_in_files(name: str) -> list[str]:
    """How a weight of timm's feature wrapper may be called in a file of the whole model.

    The wrappers hold a transformer as "model", and flatten sequential modules: "stages.0" becomes "stages_0".
    """
    first, _, rest = name.partition(".")
    breaks = [i for i, letter in enumerate(first) if letter == "_"]
    flattened = [f"{first[:i]}.{first[i + 1 :]}.{rest}" for i in breaks]
    return [name, *([rest] if first == "model" else []), *flattened]


def _load_audited(model: nn.Module, path: str) -> None:
    """Loads a local file into the encoder: every weight of the encoder must be in it, under one common prefix."""
    found = read_weights(path)
    wanted = model.state_dict()
    sources: dict[str, str] = {}
    for prefix in ("", "module.", "model.", "encoder.", "backbone.", "image_encoder.model."):
        under = {
            name: next((prefix + other for other in _names_in_files(name) if prefix + other in found), "")
            for name in wanted
        }
        under = {name: source for name, source in under.items() if source}
        sources = max(sources, under, key=len)
    # num_batches_tracked is a counter that older files lack and nothing here reads.
    missing = [name for name in wanted if name not in sources and not name.endswith("num_batches_tracked")]
    wrong = [name for name, source in sources.items() if found[source].shape != wanted[name].shape]
    if missing or wrong:
        problem = f"{len(missing)} weights missing (first: {missing[0]})" if missing else f"shape of {wrong[0]} differs"
        raise CheckpointError(f"{path}: does not fit this image encoder: {problem}; check `image.name` and `depth`")
    model.load_state_dict({name: found[source] for name, source in sources.items()}, strict=False)


class ImageEncoder(nn.Module):
    """A timm backbone that returns its feature pyramid.

    Attributes:
        channels: of each level, finest first.
        reductions: stride of each level.
        out_channels: channels of the deepest level.

    Args:
        config: which backbone.
        image_size: side of the training images, for backbones with a position table.

    Raises:
        ConfigError: timm has no such model, or it has no feature maps.
        CheckpointError: the weights file does not fit.
    """

    def __init__(self, config: ImageEncoderConfig, image_size: int = 224) -> None:
        super().__init__()
        options = dict(config.options)
        if config.depth is not None:
            if config.depth < 1:
                raise ConfigError(f"image.depth must be at least 1, not {config.depth}")
            options["out_indices"] = tuple(range(config.depth))
        if config.name.startswith(("vit", "deit", "beit", "eva", "swin")):
            options.setdefault("img_size", image_size)
        try:
            self.model = timm.create_model(config.name, pretrained=config.pretrained, features_only=True, **options)
        except (RuntimeError, IndexError, AssertionError, TypeError, ValueError) as error:
            if config.name in timm.list_models():
                what = f"{config.name!r} with depth {config.depth} and options {config.options}"
                raise ConfigError(f"image: timm cannot build {what}: {error}") from error
            similar = ", ".join(difflib.get_close_matches(config.name, timm.list_models(), 5)) or "timm.list_models()"
            raise ConfigError(
                f"image.name: timm cannot build {config.name!r} with feature maps ({error}); try {similar}"
            ) from error
        levels: Any = self.model.feature_info
        self.channels: list[int] = list(levels.channels())
        self.reductions: list[int] = list(levels.reduction())
        if config.weights:
            _load_audited(self.model, config.weights)
        # Swin and a few others give (B, H, W, C); timm names its formats.
        self.channels_at_end = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)

    @property
    def out_channels(self) -> int:
        """Channels of the deepest level."""
        return self.channels[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encodes.

        Args:
            images: (B, 3, S, S), in the intensity range that the encoder was or will be trained on.

        Returns:
            The pyramid, finest first: (B, channels[i], S/reductions[i], S/reductions[i]).
        """
        pyramid = self.model(images.contiguous(memory_format=self.memory_format))
        return [level.permute(0, 3, 1, 2) for level in pyramid] if self.channels_at_end else pyramid
