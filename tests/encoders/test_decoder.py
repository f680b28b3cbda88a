"""The U-Net decoder over pyramids of several kinds."""

import pytest
import torch

from medvlp.encoders.decoder import UNetDecoder
from medvlp.errors import ConfigError


@pytest.mark.parametrize("first", [2, 4])
def test_logits_at_image_size(first):
    strides = [first * 2**i for i in range(4)]
    decoder = UNetDecoder([4, 8, 8, 16], strides)
    levels = [torch.randn(2, c, 64 // s, 64 // s) for c, s in zip([4, 8, 8, 16], strides, strict=True)]
    assert decoder(levels).shape == (2, 1, 64, 64)


def test_widths_that_do_not_fit_the_pyramid():
    with pytest.raises(ConfigError, match=r"decoder_widths has 4 numbers.*\[4, 8, 16, 32\] takes 5 steps.*give 5"):
        UNetDecoder([8, 8, 8, 8], [4, 8, 16, 32], widths=[32, 16, 8, 8])
