import pickle

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from medvlp.errors import ConfigError, DataError
from medvlp.resizing import RESIZE_RULES, Geometry, _area_axis, build_resize, nearest

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
NAMES = st.tuples(st.sampled_from(sorted(RESIZE_RULES)), st.integers(8, 70)).map(
    lambda pair: pair[0] if pair[0] == "full" else f"{pair[0]}:{pair[1]}"
)
SIDES = st.one_of(st.just(1), st.integers(1, 150))


def _image(height=97, width=60, seed=0):
    grey = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return torch.from_numpy(cv2.resize(grey, (width, height), interpolation=cv2.INTER_CUBIC))[None]


@st.composite
def images(draw):
    """Images of odd sizes, all black ones, and ones with black margins, which the stretch rules crop."""
    height = draw(SIDES)
    width = draw(st.one_of(st.just(height), SIDES))
    image = _image(height, width, draw(st.integers(0, 3)))
    kind = draw(st.sampled_from(["full", "black", "margins"]))
    if kind == "black":
        return torch.zeros_like(image)
    if kind == "margins":
        framed = torch.zeros_like(image)
        inner = (slice(None), slice(height // 5, height - height // 7), slice(width // 4, width - width // 6))
        framed[inner] = image[inner]
        return framed
    return image


@st.composite
def image_and_box(draw):
    image = draw(images())
    height, width = image.shape[1:]
    x = sorted((draw(st.integers(0, width - 1)), draw(st.integers(1, width))))
    y = sorted((draw(st.integers(0, height - 1)), draw(st.integers(1, height))))
    return image, (x[0], y[0], max(x[1], x[0] + 1), max(y[1], y[0] + 1))


@SETTINGS
@given(NAMES, images())
def test_every_rule_gives_contiguous_bytes_of_the_size_it_names(name, image):
    rule = pickle.loads(pickle.dumps(build_resize(name)))
    before = image.clone()
    result, geometry = rule.image(image)
    assert torch.equal(image, before)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert result.shape == (1, geometry.out_height, geometry.out_width)
    if rule.square_side is not None:
        assert result.shape == (1, rule.size, rule.size)
    assert torch.equal(result, rule.image(image)[0])
    g = geometry
    assert min(g) >= 0
    assert min(g.crop_width, g.crop_height, g.width, g.height) >= 1
    assert g.left + g.crop_width <= image.shape[2]
    assert g.top + g.crop_height <= image.shape[1]
    assert g.pad_left + g.width <= g.out_width
    assert g.pad_top + g.height <= g.out_height
    # what lies outside the scaled image is black
    inside = torch.zeros_like(result, dtype=torch.bool)
    inside[:, g.pad_top : g.pad_top + g.height, g.pad_left : g.pad_left + g.width] = True
    assert not result[~inside].any()


@SETTINGS
@given(NAMES, images(), st.lists(st.tuples(*[st.floats(-20, 170, width=32)] * 4), max_size=5))
def test_boxes_come_back(name, image, corners):
    rule = build_resize(name)
    geometry = rule.image(image)[1]
    boxes = torch.tensor(corners, dtype=torch.float32).view(-1, 4)
    there = rule.boxes(boxes, geometry)
    assert there.dtype == torch.float32
    assert there.shape == boxes.shape
    g = geometry
    shift, origin = (torch.tensor(side * 2) for side in ((g.pad_left, g.pad_top), (g.left, g.top)))
    scale = torch.tensor((g.width / g.crop_width, g.height / g.crop_height) * 2)
    assert torch.allclose((there - shift) / scale + origin, boxes, atol=1e-3)


@SETTINGS
@given(NAMES, image_and_box())
def test_a_mask_goes_where_its_box_goes(name, pair):
    image, (x0, y0, x1, y1) = pair
    rule = build_resize(name)
    result, g = rule.image(image)
    mask = torch.zeros(image.shape, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    drawn = rule.mask(mask, g)
    assert drawn.dtype == torch.bool
    assert drawn.shape == result.shape
    box = rule.boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32), g)[0]
    low = torch.tensor([g.pad_left, g.pad_top] * 2)
    box = box.maximum(low).minimum(low + torch.tensor([g.width, g.height] * 2))
    if not drawn.any():  # thinner than a pixel of the result, or cropped away
        assert min(box[2] - box[0], box[3] - box[1]) < 1
        return
    rows, columns = drawn[0].any(1).nonzero(), drawn[0].any(0).nonzero()
    extent = torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    assert (extent - box).abs().max() <= 1


def test_nearest_takes_the_pixel_under_each_centre():
    for old, new in [(1, 7), (7, 1), (5, 5), (6, 4), (10, 3), (3, 10), (1024, 224)]:
        row = torch.arange(old)[None]
        expected = [int((i + 0.5) * old / new) for i in range(new)]
        assert nearest(row, 1, new)[0].tolist() == expected
        assert nearest(row.T, new, 1)[:, 0].tolist() == expected


@pytest.mark.parametrize("shape", [(97, 60), (60, 97), (80, 80), (300, 211), (20, 30)])
def test_pad_is_opencv_area(shape):
    image = _image(*shape)
    height, width = shape
    side = 64
    ratio = side / max(shape)
    new = (side, int(width * ratio)) if height >= width else (int(height * ratio), side)
    method = cv2.INTER_AREA if side < max(shape) else cv2.INTER_LINEAR
    small = cv2.resize(image[0].numpy(), new[::-1], interpolation=method)
    down, right = side - new[0], side - new[1]
    expected = np.pad(small, ((down // 2, down - down // 2), (right // 2, right - right // 2)))
    result, geometry = build_resize(f"pad:{side}").image(image)
    assert result.shape == (1, side, side)
    assert np.abs(result[0].numpy().astype(int) - expected).max() <= 1
    assert geometry == Geometry(0, 0, width, height, new[1], new[0], right // 2, down // 2, side, side)


def test_area_axis_keeps_the_mean():
    x = torch.randint(0, 256, (3, 3056), dtype=torch.uint8)
    assert torch.allclose(_area_axis(x, 253).mean(1), x.float().mean(1), atol=1e-2)


@pytest.mark.parametrize("shape", [(97, 60), (40, 200), (30, 20), (1, 50)])
def test_the_named_filters(shape):
    image = _image(*shape)
    pillow = Image.fromarray(image[0].numpy())
    assert np.array_equal(build_resize("lanczos:48").image(image)[0][0], pillow.resize((48, 48), Image.LANCZOS))
    for name, method in (("square:48", Image.BILINEAR), ("bicubic:48", Image.BICUBIC)):
        result = build_resize(name).image(image)[0][0].numpy().astype(int)
        assert np.abs(result - np.asarray(pillow.resize((48, 48), method))).max() <= 1
    plain = build_resize("square_plain:48").image(image)[0][0].numpy().astype(int)
    opencv = cv2.resize(image[0].numpy(), (48, 48), interpolation=cv2.INTER_LINEAR)
    assert np.abs(plain - opencv).max() <= 1


@pytest.mark.parametrize("shape", [(97, 60), (60, 97), (110, 64), (20, 30), (1, 50)])
def test_longer_pad_is_chexzero(shape):
    """Against a plain Pillow transcription: both sides cut to integers, pasted at floor((size − side) / 2)."""
    image = _image(*shape)
    pillow = Image.fromarray(image[0].numpy())
    width, height = (max(int(s * (224 / max(shape))), 1) for s in pillow.size)
    expected = np.zeros((224, 224), np.uint8)
    top, left = (224 - height) // 2, (224 - width) // 2
    expected[top : top + height, left : left + width] = pillow.resize((width, height), Image.LANCZOS)
    assert np.array_equal(build_resize("longer_pad:224").image(image)[0][0], expected)


@pytest.mark.parametrize("shape", [(97, 60), (60, 97), (64, 64), (65, 64), (20, 30), (300, 65), (7, 4000)])
def test_storage_rules_never_enlarge(shape):
    image = _image(*shape)
    shorter, longer = (build_resize(f"{r}:64").image(image)[0] for r in ("shorter", "longer"))
    for result, side in ((shorter, min), (longer, max)):
        if side(shape) <= 64:
            assert torch.equal(result, image)
        else:
            assert result.shape[1:] == tuple(max(64 * length // side(shape), 1) for length in shape)
    if min(shape) > 64:
        assert torch.equal(shorter, v2.functional.resize(image, [64], antialias=True))
    assert build_resize("full").image(image)[1] == Geometry.identity(*shape)


def test_stretch_crops_and_wraps():
    image = torch.zeros(1, 50, 70, dtype=torch.uint8)
    image[:, 10:40, 20:60] = 100
    image[:, 20:30, 30:50] = 250
    for name, bright in (("stretch_official:64", 0), ("stretch_255:64", 255)):
        result, geometry = build_resize(name).image(image)
        assert geometry == Geometry(20, 10, 40, 30, 64, 64, 0, 0, 64, 64)
        assert int(result[0, 32, 32]) == bright
        assert int(result[0, 0, 0]) == 0
    # boxes outside the crop land outside the result, and their masks vanish
    rule = build_resize("stretch_255:64")
    assert rule.boxes(torch.tensor([[0.0, 0, 10, 10]]), geometry)[0, 2] < 0
    assert not rule.mask(~image.bool(), geometry).any()


@pytest.mark.parametrize("name", ["square", "square:", "square:0", "square:-3", "square:07", "full:3", "cubic:8", ""])
def test_unknown_rules_are_named(name):
    with pytest.raises(ConfigError, match=r"longer_pad:SIZE.*full"):
        build_resize(name)


def test_wrong_input_is_explained():
    rule = build_resize("square:16")
    _, geometry = rule.image(_image(40, 30))
    for wrong in (torch.zeros(1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 0, 4).byte()):
        with pytest.raises(DataError, match=r"\(1, H, W\)"):
            rule.image(wrong)
    with pytest.raises(DataError, match="30 × 40"):
        rule.mask(torch.zeros(1, 40, 31, dtype=torch.bool), geometry)
    with pytest.raises(DataError, match="bool"):
        rule.mask(torch.zeros(1, 40, 30), geometry)
    with pytest.raises(DataError, match=r"\(n, 4\)"):
        rule.boxes(torch.zeros(4), geometry)
    assert rule == build_resize("square:16")
