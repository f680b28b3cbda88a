"""Three levels for the head, from the pyramid of any encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.errors import ConfigError

Resample = Literal["down", "keep", "up"]


@dataclass(frozen=True)
class LevelPlan:
    """Sources of the three levels, coarsest first."""

    sources: tuple[int, int, int]
    """Index of each level in the encoder's pyramid."""
    resample: tuple[Resample, Resample, Resample]
    """"down" halves its grid, "up" doubles it."""
    strides: tuple[float, float, float]
    """Of each level after that, in pixels of the image."""

    @property
    def used(self) -> tuple[int, ...]:
        """Indices of the needed levels of the encoder's pyramid, finest first, each once; feature caches keep these."""
        return tuple(sorted(set(self.sources)))


def plan_levels(reductions: Sequence[int]) -> LevelPlan:
    """Choose three levels.

    ========================  ==============================================================================
    strides of the encoder    levels
    ========================  ==============================================================================
    three or more             the three deepest (ResNet-50: 32, 16, 8; four stages of it: 16, 8, 4)
    two                       both, and the deeper one halved
    one (ViT)                 its last map doubled, kept and halved (strides 8, 16, 32 of patches of 16); where
                              the encoder gives maps of three depths, the earliest is doubled, the last halved
    ========================  ==============================================================================

    Where the encoder has several strides, the deepest map of each stride is used. ``reductions`` are the strides of its
    levels, finest first.
    """
    if not reductions:
        raise ConfigError("detection needs an encoder with feature maps, and this one has none")
    deepest = {stride: i for i, stride in enumerate(reductions)}
    strides = sorted(deepest, reverse=True)
    if len(strides) >= 3:
        coarse, middle, fine = strides[:3]
        sources = deepest[coarse], deepest[middle], deepest[fine]
        return LevelPlan(sources, ("keep", "keep", "keep"), (coarse, middle, fine))
    if len(strides) == 2:
        coarse, fine = strides
        sources = deepest[coarse], deepest[coarse], deepest[fine]
        return LevelPlan(sources, ("down", "keep", "keep"), (2 * coarse, coarse, fine))
    last = len(reductions) - 1
    stride = strides[0]
    sources = (last, last - 1, last - 2) if last >= 2 else (last, last, last)
    return LevelPlan(sources, ("down", "keep", "up"), (2 * stride, stride, stride / 2))


class ThreeLevels(nn.Module):
    """Compute the planned levels: without parameters for a CNN, with one 2 × 2 deconvolution for a ViT.

    The resampling is that of Feature2Pyramid (MMSegmentation's neck for BEiT): a deconvolution of kernel and stride 2,
    and a max pooling of 2 × 2. An odd grid is halved rounding up, with overlapping windows, so that its cells still
    cover the image evenly.

    ``channels`` are given for the levels ``plan.used``, the input of :meth:`forward`; the attribute has those of the
    three levels, coarsest first.
    """

    def __init__(self, plan: LevelPlan, channels: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != len(plan.used):
            raise ConfigError(f"the plan uses {len(plan.used)} levels of the pyramid, but {len(channels)} are given")
        self.sources = [plan.used.index(source) for source in plan.sources]
        self.resample = plan.resample
        self.channels = [channels[source] for source in self.sources]
        self.up = nn.ModuleDict(
            {
                str(level): nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
                for level, (width, resample) in enumerate(zip(self.channels, plan.resample, strict=True))
                if resample == "up"
            }
        )

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The used levels, finest first, (B, C, H, W) each, to three maps, coarsest first."""
        levels = []
        for level, (source, resample) in enumerate(zip(self.sources, self.resample, strict=True)):
            features = pyramid[source]
            if resample == "up":
                features = self.up[str(level)](features)
            elif resample == "down":
                height, width = features.shape[-2:]
                features = F.adaptive_max_pool2d(features, (-(-height // 2), -(-width // 2)))
            levels.append(features)
        return levels
