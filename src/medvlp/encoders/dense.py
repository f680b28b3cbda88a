"""Decoders of segmentation tasks beside the U-Net, and the neck that gives a vision transformer a pyramid."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead, initialization
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from medvlp.errors import ConfigError


class FeatureToPyramid(nn.Module):
    """Neck from maps of one stride to the strides × ¼, × ½, × 1, × 2 (mmsegmentation, for plain transformers).

    Two deconvolutions with batch norm and GELU between, one deconvolution, the identity, and a max pooling.

    Args:
        channels: of the maps, shallowest first; the last four are used, and of fewer the deepest is repeated.
        stride: of all of them, in pixels.

    Attributes:
        channels: of the four levels, finest first.
        reductions: their strides.
    """

    def __init__(self, channels: Sequence[int], stride: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.sources = [max(0, last - 3 + i) for i in range(4)] if last >= 3 else [min(i, last) for i in range(4)]
        self.channels = [channels[source] for source in self.sources]
        self.reductions = [stride // 4, stride // 2, stride, stride * 2]
        first, second = self.channels[:2]
        ups = [nn.ConvTranspose2d(first, first, 2, 2) for _ in range(2)]
        self.up4 = nn.Sequential(ups[0], nn.BatchNorm2d(first), nn.GELU(), ups[1])
        self.up2 = nn.ConvTranspose2d(second, second, 2, 2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h, w) maps of one size → four levels, finest first."""
        a, b, c, d = (maps[source] for source in self.sources)
        return [self.up4(a), self.up2(b), c, F.max_pool2d(d, 2)]


class UPerNet(nn.Module):
    """UPerNet's decoder and head over a pyramid of strides 4, 8, 16, 32, from segmentation-models-pytorch.

    Channels and strides are those of at least three levels, finest first; ``width`` is the decoder's (MaCo's
    mmsegmentation configuration: 768).
    """

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[int], out_channels: int = 1, width: int = 256
    ) -> None:
        super().__init__()
        from_four = [i for i, stride in enumerate(reductions) if stride >= 4]
        strides = [reductions[i] for i in from_four]
        if len(strides) < 3 or any(b != 2 * a for a, b in itertools.pairwise(strides)) or strides[0] != 4:
            raise ConfigError(f"UPerNet needs levels of strides 4, 8, 16, …; the encoder gives {list(reductions)}")
        self.levels = from_four
        self.decoder = UPerNetDecoder(
            encoder_channels=[3, 0, *(channels[i] for i in from_four)],
            encoder_depth=len(from_four) + 1,
            decoder_channels=width,
        )
        dropout = nn.Dropout2d(0.1)  # of that configuration
        self.head = nn.Sequential(dropout, SegmentationHead(width, out_channels, kernel_size=1))
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Pyramid → (B, out_channels, S, S) logits; the map of stride 4 enlarged bilinearly."""
        chosen = [features[i] for i in self.levels]
        finest = chosen[0]
        logits = self.head(self.decoder([finest, finest, *chosen]))
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)


def _double(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [nn.Conv2d(width, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class MedKLIPDecoder(nn.Module):
    """The U-Net of MedKLIP's segmentation sample: from stride 16 up, with the image itself as the last skip.

    A bridge of two convolutions, four steps (deconvolution, skip, two convolutions), dropout 0.2, a 1 × 1
    convolution (there written as one over the list of pixels).

    Args:
        channels: of the pyramid's levels, finest first.
        reductions: their strides; 2, 4, 8 and 16 are used, deeper ones ignored.
        out_channels: of the logits.
        widths: after each step, coarsest first.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        out_channels: int = 1,
        widths: Sequence[int] = (512, 256, 128, 64),
    ) -> None:
        super().__init__()
        if any(stride not in reductions for stride in (2, 4, 8, 16)):
            raise ConfigError(f"MedKLIP's decoder needs levels of strides 2, 4, 8, 16; there are {list(reductions)}")
        self.levels = [list(reductions).index(stride) for stride in (16, 8, 4, 2)]
        deepest, *skips = [channels[i] for i in self.levels]
        self.bridge = _double(deepest, deepest)
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        before = deepest
        for skip, width in zip([*skips, 3], widths, strict=True):
            self.ups.append(nn.ConvTranspose2d(before, width, 2, 2))
            self.joins.append(_double(width + skip, width))
            before = width
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(before, out_channels, 1))

    def forward(self, features: Sequence[Tensor], images: Tensor) -> Tensor:
        """Pyramid and (B, 3, S, S) images → (B, out_channels, S, S) logits."""
        deepest, *skips = [features[i] for i in self.levels]
        current = self.bridge(deepest)
        for up, join, skip in zip(self.ups, self.joins, [*skips, images], strict=True):
            current = join(torch.cat([up(current), skip.to(current.dtype)], 1))
        return self.head(current)
