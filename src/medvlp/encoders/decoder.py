"""U-Net decoder over an encoder's feature pyramid, from segmentation-models-pytorch."""

import itertools
from collections.abc import Sequence

from segmentation_models_pytorch.base import SegmentationHead, initialization
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from medvlp.errors import ConfigError

_WIDTHS = (256, 128, 64, 32, 16)


class UNetDecoder(nn.Module):
    """Decoder and head of a U-Net: a pyramid of features in, logits at image size out.

    Each step doubles the size (nearest), joins the skip connection and applies two 3×3 conv-norm-ReLU.

    Args:
        channels: of the pyramid's levels, finest first (strides 2, 4, 8, …).
        reductions: the levels' strides. A pyramid that starts at 4 (ConvNeXt, ViT-like) gets no skip at 2.
        out_channels: channels of the logits.
        widths: channels after each step, coarsest first; the last ``len(levels)`` of (256, 128, 64, 32, 16) if None.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        out_channels: int = 1,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        channels, reductions = list(channels), list(reductions)
        if any(b != 2 * a for a, b in itertools.pairwise(reductions)) or reductions[0] not in (2, 4):
            raise ConfigError(
                f"a U-Net decoder needs an image encoder with strides 2, 4, 8, … or 4, 8, …, not {reductions}; choose "
                "another image.name, or decoder_loss: none"
            )
        self.pad_first = reductions[0] == 4
        if self.pad_first:
            channels = [0, *channels]
        widths = list(widths) if widths else list(_WIDTHS[-len(channels) :])
        if len(widths) != len(channels):
            raise ConfigError(
                f"decoder_widths has {len(widths)} numbers, and a pyramid with strides {reductions} takes "
                f"{len(channels)} steps to the image: give {len(channels)}, coarsest first"
            )
        # The library's list starts with the image itself (3 channels), which its decoder drops.
        self.decoder = UnetDecoder(
            encoder_channels=[3, *channels], decoder_channels=widths, n_blocks=len(channels), use_norm="batchnorm"
        )
        self.head = SegmentationHead(widths[-1], out_channels, kernel_size=3)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.head)

    @property
    def out_channels(self) -> int:
        """Channels of the logits."""
        return int(self.head[0].out_channels)

    def new_head(self, out_channels: int) -> None:
        """Replace the last layer by a freshly initialised one; all others stay."""
        self.head = SegmentationHead(self.head[0].in_channels, out_channels, kernel_size=3)
        initialization.initialize_head(self.head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, out_channels, S, S) of a pyramid, finest first, (B, C_i, S/r_i, S/r_i)."""
        finest = features[0]
        if self.pad_first:
            empty = finest.new_zeros(len(finest), 0, 2 * finest.shape[2], 2 * finest.shape[3])
            features = [empty, *features]
        # Only the spatial size of the image is read.
        image = finest.new_zeros(1).expand(len(finest), 3, 2 * features[0].shape[2], 2 * features[0].shape[3])
        return self.head(self.decoder([image, *features]))
