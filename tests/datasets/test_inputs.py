"""Images from files, PIL, arrays and tensors come out alike, and what is no image is refused."""

import numpy as np
import pytest
import torch
from helpers import chest
from PIL import Image

from medvlp.datasets.inputs import grey_levels, prepare_images
from medvlp.errors import ConfigError, DataError, UnreadableItemError

GREY = chest(48)
RULE = {"transform": "plain", "size": 32, "intensity": "standard"}


@pytest.mark.parametrize(
    "image",
    [
        GREY,
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGB"),
        Image.fromarray(GREY).convert("RGBA"),
        np.stack([GREY] * 3, -1),
        np.stack([GREY] * 3),
        GREY[..., None],
        torch.from_numpy(GREY),
        GREY / 255.0,
        torch.from_numpy(GREY)[None].expand(3, -1, -1).float() / 255,
        GREY.astype(np.uint16) * 257,
    ],
    ids=lambda image: f"{type(image).__name__}{getattr(image, 'shape', getattr(image, 'mode', ''))}",
)
def test_every_form_gives_the_same_grey(image):
    np.testing.assert_array_equal(grey_levels(image), GREY)


def test_files(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    prepared = prepare_images([tmp_path / "a.png", str(tmp_path / "a.png"), GREY], RULE)
    assert prepared.batch.shape == (3, 3, 32, 32)
    torch.testing.assert_close(prepared.batch[0], prepared.batch[2], rtol=0, atol=0)
    assert prepared.geometry[0].out_width == 32
    with pytest.raises(UnreadableItemError, match="none"):
        prepare_images(tmp_path / "none.png", RULE)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((2, 2, 2, 2)), "shape"),
        (np.zeros((0, 4)), "shape"),
        (np.full((4, 4), 7.0), r"\[0, 1\]"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), -3), "0…65535"),
        (np.ones((4, 4), bool), "mask"),
        (object(), "not a object"),
    ],
)
def test_what_is_no_image(image, said):
    with pytest.raises(DataError, match=said):
        grey_levels(image)


def test_a_model_without_preprocessing():
    with pytest.raises(ConfigError, match="checkpoint"):
        prepare_images(GREY, {})
    with pytest.raises(ConfigError, match="no image"):
        prepare_images([], RULE)
