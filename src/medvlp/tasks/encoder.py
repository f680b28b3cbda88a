"""The image encoder of a task: a method's, a bare one, or a method's weights in another network."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.errors import CheckpointError, ConfigError, check_choice
from medvlp.training.optim import OptimConfig
from medvlp.weights import load

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule

Pool = Literal["auto", "mean", "token"]


@dataclass(frozen=True)
class EncoderSource:
    """Source of a task's encoder.

    Args:
        checkpoint: a medvlp checkpoint, whose pre-trained image encoder is used.
        image: without a checkpoint, a bare encoder: random, timm's weights (``pretrained``) or a local file
            (``weights``). With a checkpoint, the network into which its encoder weights are loaded where they fit.
        averaged: use the moving average, if the run kept one.
        min_match: with both, the smallest share of the network's parameters that the checkpoint must fill.
        preprocess: of a bare encoder: transform, size and intensity for data modules that say
            ``transform: checkpoint``.
        seed: of a bare encoder's random weights, whatever the run's seed.
    """

    checkpoint: str | None = None
    image: ImageEncoderConfig | None = None
    averaged: bool = True
    min_match: float = 0.9
    preprocess: dict[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class KeyAudit:
    """Names that loading a checkpoint into another network matched or not, and the filled share of its parameters."""

    matched: list[str]
    missing: list[str]
    unused: list[str]
    reshaped: list[str]
    share: float
    notes: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} weights matched ({self.share:.0%} of the network)"]
        for what, names in (("missing", self.missing), ("of another shape", self.reshaped), ("unused", self.unused)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
        return "; ".join(parts)


def transplant(source: ImageEncoder, target: ImageEncoder) -> KeyAudit:
    """Copy weights from one image encoder into another, in place, where names and shapes agree.

    A vision transformer's position table of another grid is interpolated (bicubic).
    """
    given, expected = source.state_dict(), target.state_dict()
    notes = []
    for name in [name for name in expected if name.endswith("pos_embed") and name in given]:
        old, new = given[name], expected[name]
        if old.shape != new.shape and old.ndim == new.ndim == 3 and old.shape[2] == new.shape[2]:
            old_side, new_side = int(old.shape[1] ** 0.5), int(new.shape[1] ** 0.5)
            prefix = old.shape[1] - old_side**2
            if new.shape[1] - new_side**2 == prefix:
                given[name] = resample_abs_pos_embed(
                    old, new_size=[new_side, new_side], old_size=[old_side, old_side], num_prefix_tokens=prefix
                )
                notes.append(f"position table interpolated from {old_side}×{old_side} to {new_side}×{new_side} cells")
    both = [name for name in expected if name in given]
    matched = [name for name in both if given[name].shape == expected[name].shape]
    target.load_state_dict({name: given[name] for name in matched}, strict=False)
    total = sum(value.numel() for value in expected.values())
    return KeyAudit(
        matched=matched,
        missing=[name for name in expected if name not in given],
        unused=[name for name in given if name not in expected],
        reshaped=[name for name in both if name not in matched],
        share=sum(expected[name].numel() for name in matched) / max(total, 1),
        notes=notes,
    )


def fingerprint(module: nn.Module) -> str:
    """Hash names, shapes and bytes of a module's weights and buffers (SHA-256)."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        plain = value.detach().contiguous().cpu()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        # flattened, since contiguous() keeps channels-last strides, with the same weights in another order
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class TaskEncoder(nn.Module):
    """An image encoder as tasks use it; calling it gives feature maps, finest first, (B, C_i, S/r_i, S/r_i).

    Args:
        source: checkpoint or network.
        image_size: side of the task's images, for the position tables of bare transformers.
        dense: do not upsample the images before the encoder, for segmentation and detection (MGCA and GLoRIA upsample
            only for classification).
        keep_method: keep the method (decoder, text encoder) instead of the image encoder alone.

    Attributes:
        method: the whole method, with a checkpoint and ``keep_method``.
        channels: of the pyramid's levels, finest first.
        reductions: strides of the levels.
        width: dimension of a pooled feature.
        preprocess: transform, size and intensity of its training; empty if unknown.
        audit: result of loading the checkpoint, if ``source.image`` names another network.
        sha256: of the image encoder's initial weights.
        checkpoint_sha256: of the whole method's weights; without a method, of the encoder's.
    """

    def __init__(
        self, source: EncoderSource, image_size: int = 224, dense: bool = False, keep_method: bool = False
    ) -> None:
        super().__init__()
        if source.checkpoint is None and source.image is None:
            raise ConfigError(
                "the task has no encoder: set encoder.checkpoint to a medvlp checkpoint, or encoder.image.name to a "
                "timm model"
            )
        method: PretrainModule | None = None
        self.audit: KeyAudit | None = None
        self.preprocess: dict[str, Any] = dict(source.preprocess or {})
        if source.checkpoint is not None:
            method = load(source.checkpoint, averaged=source.averaged)
            trunk = method.image_encoder
            self.name = method.name
            self.preprocess = dict(method.preprocess)
        if source.image is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(source.seed)
                bare = ImageEncoder(source.image, image_size)
            for note in bare.notes:
                rank_zero_info(note)
            if method is None:
                origin = "file" if source.image.weights else ("timm" if source.image.pretrained else "random")
                self.name = f"{source.image.name} ({origin})"
            else:
                self.audit = transplant(trunk, bare)
                if self.audit.share < source.min_match:
                    raise CheckpointError(
                        f"{source.checkpoint}: its encoder fills too little of {source.image.name} "
                        f"(encoder.min_match is {source.min_match:g}): {self.audit}"
                    )
                rank_zero_info(f"{source.checkpoint}: {self.audit}")
            trunk = bare
        if dense and trunk.upsample_to is not None:
            trunk.upsample_to = None
            trunk.input_size = image_size
        self.trunk = trunk
        self.channels, self.reductions, self.width = trunk.channels, trunk.reductions, trunk.out_channels
        self.sha256 = fingerprint(trunk)
        self.checkpoint_sha256 = self.sha256 if method is None else fingerprint(method)
        self.pool_of_method = str(getattr(method, "feature_pool", "mean"))
        self.method = method if keep_method else None

    def pooled(self, images: Tensor, pool: Pool = "auto") -> Tensor:
        """Return one feature per image, (B, C), before any projection to a joint space.

        ``pool`` is the "mean" of the deepest level, or the class "token" of a vision transformer; "auto" follows the
        method's own classification code, the mean by default.
        """
        if (self.pool_of_method if pool == "auto" else pool) == "token":
            return self.trunk.tokens(images).class_token
        return self.trunk(images)[-1].mean((2, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, S, S) images to the pyramid."""
        return self.trunk(images)


def source_from(value: Any) -> EncoderSource:
    """Convert the dictionary of a checkpoint, or None, to an :class:`EncoderSource`."""
    if value is None:
        return EncoderSource()
    if isinstance(value, EncoderSource):
        return value
    fields = sorted(field.name for field in dataclasses.fields(EncoderSource))
    for key in sorted(value):
        check_choice("encoder setting", key, fields)
    image = value.get("image")
    return EncoderSource(**{**value, "image": ImageEncoderConfig(**image) if isinstance(image, dict) else image})


def optim_from(value: Any) -> OptimConfig | None:
    """Convert the dictionary of a checkpoint to an :class:`OptimConfig`; None stays None."""
    return OptimConfig(**value) if isinstance(value, dict) else value
