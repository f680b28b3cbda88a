"""Image encoders: any timm model that gives feature maps."""

import difflib
import re
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from medvlp.compat import features_with_norm
from medvlp.encoders.loading import check_finite, check_kind, find_prefix, is_plain, optional, read_weights
from medvlp.errors import CheckpointError, ConfigError, check_range


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Settings of an image encoder.

    Args:
        name: a timm model with ``features_only`` support ("resnet50", "convnext_tiny", "vit_base_patch16_224", …).
        pretrained: load timm's weights for it (needs the model hub, or timm's cache).
        weights: a local file (safetensors, or a torch file of tensors alone) with the encoder's weights, whatever
            else it holds; the common prefix of their names ("state_dict.module.", "backbone.", …) is found.
        depth: keep this many levels of the pyramid and no deeper layers; None keeps all.
        channels_last: keep activations in channels-last memory, faster for CNNs on GPUs and CPUs alike.
        upsample_to: stretch the images to this side first, bilinearly with aligned corners (released MGCA and GLoRIA:
            224 px to 299 before a ResNet-50, whose third stage then has 19 × 19 cells); None leaves them.
        final_norm: of a vision transformer, pass each level through the layer norm that follows the last block (MGCA).
        options: further arguments of ``timm.create_model`` (``output_stride``, ``drop_path_rate``, …).
        weights_prefix: which weights of that file, where it holds several networks that fit
            ("state_dict.module.encoder_q.", "teacher.backbone.").
    """

    name: str = "resnet50"
    pretrained: bool = False
    weights: str | None = None
    depth: int | None = None
    channels_last: bool = True
    upsample_to: int | None = None
    final_norm: bool = False
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    weights_prefix: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that no encoder has."""
        check_range("[1, 32]", depth=self.depth)
        check_range("[1, 16384]", upsample_to=self.upsample_to)


_SOURCES = ("checkpoint_path", "cache_dir", "pretrained")  # prefixes of timm's options that name a source of weights


def without_image_sources(config: ImageEncoderConfig) -> ImageEncoderConfig:
    """Return the architecture alone, for and from checkpoints: no weights, files or hubs, and options of plain values.

    Raises:
        ConfigError: the name is not one of timm's own models, or an option is neither a number nor a word.
    """
    _check_name(config.name)
    options = {key: value for key, value in config.options.items() if not key.startswith(_SOURCES)}
    for key, value in options.items():
        if key in ("model_cfg", "feature_cfg", "device", "dtype") or not is_plain(value, r"[\w-]*", 1e6, (list, tuple)):
            raise ConfigError(f"image.options.{key} cannot come from a checkpoint: {repr(value)[:60]}")
    return replace(config, pretrained=False, weights=None, weights_prefix=None, options=options)


def _check_name(name: str) -> None:
    if not (re.fullmatch(r"[\w.-]+", name, re.ASCII) and timm.is_model(name)):
        similar = ", ".join(difflib.get_close_matches(name, timm.list_models(), 5)) or "timm.list_models()"
        raise ConfigError(
            f"image.name: timm cannot build {name!r}, which is not among its own models; try {similar}, and give a "
            "local file of weights as image.weights"
        )


class ImageFeatures(NamedTuple):
    """Output of :meth:`ImageEncoder.tokens`.

    Attributes:
        pyramid: as :meth:`ImageEncoder.forward` returns it.
        class_token: (B, D) after the last block, and after the final norm where ``final_norm`` is set.
        attention: (B, heads, P + n, P + n) probabilities of the last block before dropout, P class and register
            tokens first, rows summing to 1, without gradient, or its first rows; None if not requested.
    """

    pyramid: list[Tensor]
    class_token: Tensor
    attention: Tensor | None


def _names_in_files(name: str) -> list[str]:
    # timm's feature wrappers hold a transformer as "model", and flatten sequential modules: "stages.0" → "stages_0"
    first, _, rest = name.partition(".")
    breaks = [i for i, letter in enumerate(first) if letter == "_"]
    flattened = [f"{first[:i]}.{first[i + 1 :]}.{rest}" for i in breaks]
    return [rest] if first == "model" else [name, *flattened]


def _load_audited(model: nn.Module, path: str, prefix: str | None) -> list[str]:
    """Load a local file, which must hold every weight of the encoder, under one common prefix.

    A vision transformer's position table of another image size is interpolated (bicubic), which the result notes.
    """
    stored, expected = read_weights(path), model.state_dict()
    aliases = {alias: name for name in reversed(expected) for alias in reversed(_names_in_files(name))}
    prefix, sources = find_prefix(path, stored, expected, aliases, prefix)
    weights = {name: stored[source] for name, source in sources.items()}
    check_kind(f"{path}: ", weights, expected)
    missing = [name for name in expected if name not in weights and not optional(name)]
    notes = [f"image encoder: weights below {prefix!r} of {path}"] if prefix else []
    notes += _fit_positions(model, expected, weights)
    wrong = [name for name, value in weights.items() if value.shape != expected[name].shape]
    if missing or wrong:
        problem = f"{len(missing)} weights missing (first: {missing[0]})" if missing else f"shape of {wrong[0]} differs"
        raise CheckpointError(f"{path}: does not fit this image encoder: {problem}; check `image.name` and `depth`")
    model.load_state_dict(weights, strict=False)
    check_finite(f"{path}: ", model)
    return notes


def _fit_positions(model: nn.Module, expected: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Interpolate the position table among the weights if its grid is not the model's."""
    transformer = getattr(model, "model", None)
    table = weights.get("model.pos_embed")
    if table is None or not isinstance(transformer, VisionTransformer):
        return []
    target = expected["model.pos_embed"]
    if table.ndim != 3 or table.shape == target.shape or table.shape[2] != target.shape[2]:
        return []
    prefix = 0 if transformer.no_embed_class else transformer.num_prefix_tokens
    old = round((table.shape[1] - prefix) ** 0.5)
    if old * old != table.shape[1] - prefix:
        return []
    new = list(transformer.patch_embed.grid_size)
    resampled = resample_abs_pos_embed(table, new_size=new, old_size=[old, old], num_prefix_tokens=prefix)
    weights["model.pos_embed"] = resampled
    return [f"image encoder: the position table of {old}×{old} cells is interpolated to {new[0]}×{new[1]}"]


class ImageEncoder(nn.Module):
    """A timm backbone that returns its feature pyramid. The attention of transformers is torch's fused one.

    Attributes:
        channels: of each level, finest first.
        reductions: stride of each level, in pixels of the input size.
        out_channels: channels of the deepest level.
        input_size: side of the images that the backbone sees, after ``upsample_to``.
        notes: messages for the user about how the weights were loaded.

    ``image_size`` is the side of the training images. Vision transformers get a position table for it, and interpolate
    that for images of other sizes.

    Raises:
        ConfigError: timm has no such model, it has no feature maps, or no final norm where one is asked for.
        CheckpointError: the weights file does not fit, or pretrained weights are not available.
    """

    def __init__(self, config: ImageEncoderConfig, image_size: int = 224) -> None:
        super().__init__()
        _check_name(config.name)
        self.upsample_to = config.upsample_to
        self.input_size = config.upsample_to or image_size
        self.notes: list[str] = []
        self.model = _build(config, self.input_size)
        levels: Any = self.model.feature_info
        self.channels: list[int] = list(levels.channels())
        self.reductions: list[int] = list(levels.reduction())
        if config.weights:
            self.notes += _load_audited(self.model, config.weights, config.weights_prefix)
        # Swin and a few others give (B, H, W, C); timm names its formats.
        self.channels_at_end = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)

    @property
    def out_channels(self) -> int:
        """Channels of the deepest level."""
        return self.channels[-1]

    @property
    def has_class_token(self) -> bool:
        """Whether :meth:`tokens` works, which needs a vision transformer with a class token."""
        transformer = getattr(self.model, "model", None)
        return isinstance(transformer, VisionTransformer) and bool(transformer.has_class_token)

    def grid(self, level: int = -1) -> int:
        """Return the side of a level's map of the training images, in cells."""
        return max(1, -(-self.input_size // self.reductions[level]))

    def _input(self, images: Tensor) -> Tensor:
        if self.upsample_to is not None and images.shape[-1] != self.upsample_to:
            side = (self.upsample_to, self.upsample_to)
            images = F.interpolate(images, size=side, mode="bilinear", align_corners=True)
        # images of a module in half or double precision may come as the data sets give them
        dtype = next(self.model.parameters()).dtype
        return images.to(dtype).contiguous(memory_format=self.memory_format)

    def forward(
        self, images: Tensor, *, tokens: bool = False, attention: bool = False, attention_rows: int | None = None
    ) -> list[Tensor] | ImageFeatures:
        """Return the pyramid of images (B, 3, S, S), or, with ``tokens``, what :meth:`tokens` returns.

        The pyramid is finest first: (B, channels[i], S/reductions[i], S/reductions[i]), S the input size.
        """
        if tokens:
            return self._tokens(self._input(images), attention, attention_rows)
        pyramid = self.model(self._input(images))
        return [level.permute(0, 3, 1, 2) for level in pyramid] if self.channels_at_end else pyramid

    def tokens(self, images: Tensor, attention: bool = False, attention_rows: int | None = None) -> ImageFeatures:
        """Encode with a vision transformer and keep its class token; a compiled encoder is compiled for this, too.

        Args:
            images: as in :meth:`forward`.
            attention: also return the last block's attention probabilities (MGCA). They are computed beside the fused
                attention, for this block alone.
            attention_rows: number of first rows of the attention, 1 being the class token's; None returns all N.

        Raises:
            ConfigError: not a vision transformer, or one without class token; or attention of a single block.
        """
        features: ImageFeatures = self(images, tokens=True, attention=attention, attention_rows=attention_rows)
        return features

    def _tokens(self, images: Tensor, attention: bool, rows: int | None) -> ImageFeatures:
        transformer = getattr(self.model, "model", None)
        if not self.has_class_token or not isinstance(transformer, VisionTransformer):
            raise ConfigError(
                "class token and attention need a vision transformer; set image.name: vit_base_patch16_224"
            )
        last = len(transformer.blocks) - 1
        kept = [index % (last + 1) for index in self.model.out_indices]
        if attention and last == 0:
            raise ConfigError("attention of the class token needs a transformer of two blocks at least: raise depth")
        # What goes into the last block is what comes out of the block before it.
        indices = sorted({*kept, last - 1}) if attention else kept
        states: Any = transformer.forward_intermediates(
            images, indices=indices, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        levels = dict(zip(indices, states, strict=True))
        height, width = transformer.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        norm: Any = transformer.norm if self.model.norm else nn.Identity()
        pyramid = [
            norm(levels[index][0]).unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous() for index in kept
        ]
        probabilities = None
        if attention:
            cells, prefix = levels[last - 1]
            probabilities = _attention(transformer.blocks[-1], torch.cat([prefix, cells], 1), rows)
        return ImageFeatures(pyramid, norm(levels[kept[-1]][1])[:, 0], probabilities)


@torch.no_grad()
def _attention(block: Any, tokens: Tensor, rows: int | None) -> Tensor:
    """Return the attention probabilities of a timm block's first rows: (B, N, D) → (B, heads, rows, N)."""
    tokens, attend = block.norm1(tokens), block.attn
    weights = attend.qkv.weight.chunk(3)
    biases = (None, None, None) if attend.qkv.bias is None else attend.qkv.bias.chunk(3)
    query, key = (
        F.linear(part, weights[i], biases[i]).unflatten(2, (attend.num_heads, -1)).transpose(1, 2)
        for i, part in enumerate((tokens[:, :rows], tokens))
    )
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = attend.q_norm(query).to(dtype) @ attend.k_norm(key).to(dtype).transpose(2, 3) * attend.scale
    return scores.softmax(-1)


def _build(config: ImageEncoderConfig, input_size: int) -> Any:
    options = dict(config.options)
    levels: dict[str, Any] = {} if config.depth is None else {"out_indices": tuple(range(config.depth))}
    attempts = [options]
    if config.name.startswith(("vit", "deit", "beit", "eva", "swin")):
        options.setdefault("img_size", input_size)
        if config.name.startswith(("vit", "deit", "eva")):  # a few of them do not take it
            attempts = [{"dynamic_img_size": True, **options}, options]
    for tried in attempts:
        try:
            if not config.final_norm:
                return timm.create_model(
                    config.name, pretrained=config.pretrained, features_only=True, **levels, **tried
                )
            model = timm.create_model(config.name, pretrained=config.pretrained, num_classes=0, **tried)
            if not isinstance(model, VisionTransformer):
                raise ConfigError(f"image.final_norm needs a vision transformer, which {config.name!r} is not")
            return features_with_norm(model, levels.get("out_indices", 3))
        except OSError as error:  # the hub's own errors among them
            raise CheckpointError(
                f"image.pretrained: the weights of {config.name!r} cannot be fetched or read ({type(error).__name__}); "
                "give a local file as image.weights"
            ) from error
        except (RuntimeError, IndexError, AssertionError, TypeError, ValueError) as error:
            if tried is not attempts[-1] and isinstance(error, TypeError):
                continue
            what = f"{config.name!r} with feature maps, depth {config.depth} and options {config.options}"
            raise ConfigError(f"image: timm cannot build {what}: {error}") from error
    raise AssertionError("unreachable")
