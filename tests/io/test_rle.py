import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rle_encoding import encode_siim

from medvlp.errors import DataError
from medvlp.io.shapes import decode_siim, siim_extent

PREFIX = "557374 2 1015 8 1009 14 1002 20 997 26"  # how the first positive of the released table begins


def _slow(rle, height, width):
    mask = np.zeros((height, width), bool)
    numbers = [int(word) for word in rle.split()]
    place = 0
    for gap, length in zip(numbers[0::2], numbers[1::2], strict=True):
        place += gap
        for _ in range(length):
            mask[place % height, place // height] = True
            place += 1
    return mask


def test_prefix_of_a_released_string():
    mask = decode_siim(PREFIX, 1024, 1024)
    assert np.array_equal(mask, _slow(PREFIX, 1024, 1024))
    # the mask begins at x = 544 and grows by one column per pair, around y = 322
    assert mask.any(0).nonzero()[0].tolist() == [544, 545, 546, 547, 548]
    assert mask.sum(0)[544:549].tolist() == [2, 8, 14, 20, 26]
    assert mask[:, 544].nonzero()[0].tolist() == [557374 - 544 * 1024, 557375 - 544 * 1024]
    assert encode_siim(mask) == PREFIX
    assert siim_extent(PREFIX) == 561467


def test_runs_go_down_the_columns_of_an_oblong_image():
    mask = decode_siim("1 3", 2, 3)
    assert mask.tolist() == [[False, True, False], [True, True, False]]
    assert mask.flags.c_contiguous


@pytest.mark.parametrize("empty", ["-1", " -1", "", "  ", "-1\n"])
def test_no_mask(empty):
    assert decode_siim(empty, 3, 4).shape == (3, 4)
    assert not decode_siim(empty, 3, 4).any()
    assert siim_extent(empty) == 0
    assert encode_siim(np.zeros((3, 4))) == "-1"


@pytest.mark.parametrize(
    ("rle", "reason"),
    [
        ("5", "odd number"),
        ("1 2 3", "odd number"),
        ("1 2.5", "no whole number"),
        ("1 x", "no whole number"),
        ("nan", "no whole number"),
        ("1 -2", "negative length"),
        ("-1 2", "negative gap"),
        ("-1 -1", "negative"),
        ("1 0", "run of length 0"),
        ("+1 2", "no pixel count"),
        ("1 " + "9" * 30, "no pixel count"),
        ("1_0 2", "no whole number"),
        ("١ ٢", "no whole number"),  # digits, but not ASCII
        ("0 13", "RLE runs past the image: ends at 13 of 12 pixels"),
        ("1 2 " + "9" * 18 + " 1", "runs past the image"),
        (" ".join(["9" * 18] * 40), f"ends at {40 * (10**18 - 1)} of 12"),  # beyond what int64 can sum
    ],
)
def test_errors_name_the_reason(rle, reason):
    with pytest.raises(DataError, match=reason):
        decode_siim(rle, 3, 4)


def test_a_missing_cell_is_an_error_and_not_an_empty_mask():
    with pytest.raises(DataError, match="must be text, not float"):
        decode_siim(float("nan"), 3, 4)


def test_last_pixel():
    assert decode_siim("11 1", 3, 4)[2, 3]
    assert siim_extent("11 1") == 12


@settings(max_examples=80, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_round_trip(mask):
    rle = encode_siim(mask)
    assert np.array_equal(decode_siim(rle, *mask.shape), mask)
    if mask.any():
        assert np.array_equal(_slow(rle, *mask.shape), mask)
        assert siim_extent(rle) == mask.T.ravel().nonzero()[0][-1] + 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_strings_of_any_spacing_as_the_slow_loop(pairs):
    rle = "\t ".join(f"{gap}  {length}" for gap, length in pairs)
    end = sum(map(sum, pairs))
    assert siim_extent(rle) == end
    if end <= 72:
        assert np.array_equal(decode_siim(rle, 8, 9), _slow(rle, 8, 9))
    else:
        with pytest.raises(DataError, match=f"ends at {end} of 72"):
            decode_siim(rle, 8, 9)


@settings(max_examples=120, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text(alphabet="0123456789 -+.e\n\x00_", max_size=40)))
def test_no_string_raises_anything_else(text):
    try:
        assert decode_siim(text, 5, 6).shape == (5, 6)
        assert siim_extent(text) <= 30
    except DataError:
        pass
