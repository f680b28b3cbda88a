"""Images from files, PIL, arrays and tensors come out alike, and what is no image is refused."""

import warnings

import numpy as np
import pytest
import torch
from helpers import chest
from PIL import Image

from medvlp.datasets.inputs import grey_levels, prepare_images
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.images import warn_dark

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
        (None, "not a NoneType"),
        (np.full((4, 4), 0.5 + 0.5j), "complex128"),
        (torch.full((4, 4), 0.5 + 0.5j), "complex64"),
        (np.full((4, 4), "a"), "<U1"),
        (np.full((4, 4), b"a"), "S1"),
        (np.full((4, 4), None), "object"),
        (np.zeros((4, 4), "datetime64[s]"), "datetime64"),
        (np.zeros((4, 4), [("a", "u1")]), "none: give"),
        (np.full((4, 4), np.inf), "infinite"),
        (np.float32(0.5) * np.ones(4), "shape"),
        (np.zeros(()), "shape"),
        (np.zeros((4, 4, 2)), "shape"),
        (np.zeros((0, 0, 3)), "shape"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "too large"),
        (np.ma.masked_less(np.arange(16).reshape(4, 4), 3), "masked"),
        (torch.zeros(4, 4).to_sparse(), "cannot be read"),
        (torch.zeros(4, 4, device="meta"), "cannot be read"),
    ],
)
def test_what_is_no_image(image, said):
    with pytest.raises(DataError, match=said):
        grey_levels(image)


def test_half_precision_and_masks_without_masked_pixels():
    for image in (torch.from_numpy(GREY / 255.0).bfloat16(), (GREY / 255.0).astype(np.float16)):
        assert np.abs(grey_levels(image).astype(int) - GREY).max() <= 1
    np.testing.assert_array_equal(grey_levels(np.ma.masked_array(GREY)), GREY)


def test_a_broken_file_that_pillow_opened(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(DataError, match="cannot be read"):
        grey_levels(image)


def test_an_array_of_12_bits_is_warned_of_once():
    warn_dark.cache_clear()
    with pytest.warns(UserWarning, match="divide it by 4095"):
        assert grey_levels(GREY.astype(np.uint16) * 16).max() < 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grey_levels(GREY.astype(np.uint16) * 16)
        np.testing.assert_array_equal(grey_levels(GREY.astype(np.int32)), GREY)


def test_a_model_without_preprocessing():
    with pytest.raises(ConfigError, match="checkpoint"):
        prepare_images(GREY, {})
    with pytest.raises(ConfigError, match="no image"):
        prepare_images([], RULE)
