import pickle

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from medvlp.errors import ConfigError, DataError
from medvlp.resizing import build_resize
from medvlp.transforms import NORMALISATION, TRANSFORMS, _RandomOperation, build_transform

UNCHANGING = ("plain", "mgca_detection", "chexzero")
"""Recipes without augmentation."""


def _image(height=97, width=60, seed=0):
    grey = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return torch.from_numpy(cv2.resize(grey, (width, height), interpolation=cv2.INTER_CUBIC))[None]


def _grey(x, name):
    """The first channel in grey levels 0…255 again."""
    mean, std = NORMALISATION[name]
    return (x[0] * std[0] + mean[0]) * 255


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(97, 60), (40, 200), (1, 1), (64, 64)])
def test_shape_range_and_repeatability(name, train, shape):
    transform = pickle.loads(pickle.dumps(build_transform(name, 32, train)))
    image = _image(*shape)
    before = image.clone()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(transform(image))
    assert torch.equal(image, before)
    assert torch.equal(*results)
    x = results[0]
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.float32
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISATION[name])
    grey = x * std + mean
    if name != "chexzero":  # bicubic after the normalisation may overshoot
        assert grey.min() >= -1e-6
        assert grey.max() <= 1 + 1e-6
    assert torch.allclose(grey[0], grey[1], atol=1e-6)
    assert torch.allclose(grey[0], grey[2], atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(97, 60), (40, 200), (1, 1), (1, 50), (180, 160)])
def test_a_stored_image_gives_the_same_sample(name, train, shape):
    """finish(resize(x)) is the whole recipe, draws the same random numbers, and so does finish_joint."""
    transform = build_transform(name, 32, train)
    image = _image(*shape)
    stored, geometry = build_resize(transform.resize.name).image(image)
    kept = stored.clone()
    mask = transform.resize.mask(image > 128, geometry)
    boxes = transform.resize.boxes(torch.tensor([[0.0, 0.0, shape[1], shape[0]]]), geometry)
    for seed in range(4):
        torch.manual_seed(seed)
        expected, after = transform(image), torch.rand(3)
        for annotations in ((), (mask, boxes), (None, boxes[:0]), (mask,)):
            torch.manual_seed(seed)
            result = transform.finish_joint(stored, *annotations)[0] if annotations else transform.finish(stored)
            assert torch.equal(result, expected)
            assert torch.equal(torch.rand(3), after)
    assert torch.equal(stored, kept)


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n not in UNCHANGING])
def test_training_augments(name):
    transform = build_transform(name, 32, True)
    torch.manual_seed(0)
    assert len({round(float(transform(_image()).sum()), 3) for _ in range(8)}) > 2


@pytest.mark.parametrize("name", UNCHANGING)
def test_some_recipes_do_not_augment(name):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(build_transform(name, 32, True)(_image()), build_transform(name, 32, False)(_image()))
    assert torch.equal(torch.get_rng_state(), state)


# name, train, the next random number, every ninth grey level of both axes; recorded before recipes had a resize rule
RECORDED = [
    ("plain", False, 0.0042635, [223, 97, 92, 82, 153, 109, 193, 123, 198]),
    ("plain", True, 0.0042635, [223, 97, 92, 82, 153, 109, 193, 123, 198]),
    ("phantom", False, 0.0042635, [223, 97, 92, 82, 153, 109, 193, 123, 198]),
    ("phantom", True, 0.8878567, [255, 181, 112, 35, 156, 107, 208, 109, 224]),
    ("g2d_paper", False, 0.0042635, [237, 70, 52, 68, 160, 99, 161, 149, 99]),
    ("g2d_paper", True, 0.4510313, [0, 153, 88, 82, 124, 145, 107, 111, 71]),
    ("g2d_official", False, 0.0042635, [224, 96, 92, 80, 155, 109, 199, 126, 205]),
    ("g2d_official", True, 0.7436994, [155, 137, 46, 98, 124, 85, 136, 125, 94]),
    ("g2d_official_255", False, 0.0042635, [223, 96, 92, 80, 154, 109, 199, 126, 204]),
    ("g2d_official_255", True, 0.7436994, [154, 137, 46, 98, 123, 85, 136, 124, 94]),
    ("mgca", False, 0.0042635, [168, 72, 106, 100, 160, 168, 244, 152, 67]),
    ("mgca", True, 0.2858425, [33, 24, 58, 120, 136, 92, 219, 126, 134]),
]


@pytest.mark.parametrize(("name", "train", "number", "levels"), RECORDED)
def test_recipes_stay_as_they_were(name, train, number, levels):
    torch.manual_seed(3)
    x = build_transform(name, 32, train)(_image())
    assert float(torch.rand(())) == pytest.approx(number, abs=1e-7)
    # one level of play: processors round the bilinear filter differently
    found = _grey(x, name)[5::9, 5::9].round().flatten()
    assert (found - torch.tensor(levels)).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("plain", []),
        (
            "phantom",
            [
                v2.RandomAffine(
                    5, translate=(0.03, 0.03), scale=(0.95, 1.05), interpolation=InterpolationMode.BILINEAR
                ),
                v2.ColorJitter(brightness=0.15, contrast=0.15),
            ],
        ),
        ("g2d_paper", [v2.RandomPerspective(0.5, 0.5), v2.RandomAutocontrast(0.5), v2.CenterCrop(32)]),
        ("maco", [v2.RandomHorizontalFlip(0.5), v2.RandomAffine(20, scale=(0.8, 1.2))]),
    ],
)
def test_recipes_are_torchvisions_own_on_plain_tensors(name, steps):
    side = 37 if name == "g2d_paper" else 32
    chain = v2.Compose([v2.Resize((side, side), antialias=True), *steps])
    mean, std = (v[0] for v in NORMALISATION[name])
    transform = build_transform(name, 32, True)
    for seed in range(6):
        torch.manual_seed(seed)
        expected = (chain(_image()).float() / 255 - mean) / std
        torch.manual_seed(seed)
        assert torch.equal(transform(_image())[:1], expected)


def test_grey_channels_share_memory():
    x = build_transform("g2d_paper", 32, False)(_image())
    assert x.stride(0) == 0


def test_g2d_official_is_the_released_preparation():
    """Against a plain numpy and OpenCV transcription of the steps; the brightest pixels wrap to 0."""
    image = np.zeros((50, 70), np.uint8)
    image[5:45, 10:60] = _image(40, 50)[0].numpy() // 2 + 3
    box = image[5:45, 10:60].astype(np.float32)
    scaled = (box - box.min()) / (box.max() - box.min()) * 256
    expected = cv2.resize(scaled, (32, 32), interpolation=cv2.INTER_LINEAR).astype(np.int32) % 256
    x = build_transform("g2d_official", 32, False)(torch.from_numpy(image)[None])
    assert np.abs(_grey(x, "g2d_official").round().numpy() - expected).max() <= 1
    bright = torch.full((1, 64, 64), 7, dtype=torch.uint8)
    bright[:, 20:40, 20:40] = 250
    wrapped, kept = (build_transform(n, 64, False)(bright)[0, 30, 30] for n in ("g2d_official", "g2d_official_255"))
    assert wrapped == pytest.approx(-0.485 / 0.229)
    assert kept == pytest.approx((1 - 0.485) / 0.229)


def test_mgca_evaluates_the_centre():
    x = build_transform("mgca", 224, False)(_image(300, 300))
    padded = build_resize("pad:256").image(_image(300, 300))[0]
    expected = v2.functional.center_crop(padded, [224, 224]).float() / 255
    assert torch.allclose(x[:1] * 0.5 + 0.5, expected, atol=1e-6)


def test_chexzero_normalises_then_resizes():
    """Its own order, on 0–255: normalise the stored 320 pixels, then bicubic without anti-aliasing."""
    stored = build_resize("longer_pad:320").image(_image(400, 380))[0]
    expected = F.interpolate((stored.float()[None] - 101.48761) / 83.43944, (224, 224), mode="bicubic")[0]
    for train in (False, True):
        x = build_transform("chexzero", 224, train)(_image(400, 380))
        assert torch.allclose(x, expected.expand(3, -1, -1), atol=1e-5)


def test_resize_rules_of_the_recipes():
    rules = {(n, t): build_transform(n, 224, t).resize.name for n in TRANSFORMS for t in (False, True)}
    assert rules["g2d_paper", True] == rules["g2d_paper", False] == "square:256"
    assert rules["mgca", True] == "pad:256"
    assert rules["mgca_detection", False] == rules["mgca_segmentation", True] == "square_plain:224"
    assert rules["convirt", True] == rules["convirt", False] == "shorter:448"
    assert rules["kad", False] == "bicubic:224"
    assert rules["chexzero", True] == "longer_pad:320"
    assert rules["benchx", True] == "lanczos:224"


def _phantom():
    """A bright rectangle in the dark, with its mask and box; two grey corners keep the whole image for G2D's crop."""
    image = torch.zeros(1, 160, 130, dtype=torch.uint8)
    box = (35, 48, 88, 112)
    image[:, box[1] : box[3], box[0] : box[2]] = 200
    image[0, 70, 60] = 255  # G2D's code wraps the brightest pixel
    image[0, 0, 0] = image[0, -1, -1] = 150
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[:, box[1] : box[3], box[0] : box[2]] = True
    return image, mask, torch.tensor([box], dtype=torch.float32)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_masks_and_boxes_move_with_the_image(name, train):
    image, mask, boxes = _phantom()
    size = 64
    transform = build_transform(name, size, train)
    resized, geometry = transform.resize.image(image)
    mask, boxes = transform.resize.mask(mask, geometry), transform.resize.boxes(boxes, geometry)
    compared = 0
    for seed in range(25 if train else 1):
        torch.manual_seed(seed)
        x, moved, box, keep = transform.finish_joint(resized, mask, boxes)
        assert moved.shape == (1, size, size)
        assert moved.dtype == torch.float32
        assert set(moved.unique().tolist()) <= {0.0, 1.0}
        assert box.shape == (1, 4)
        assert keep.dtype == torch.bool
        grey = _grey(x, name)
        # 3 pixels of play at the edge for blur and interpolation
        far = F.max_pool2d(moved, 7, 1, 3)[0] == 0
        deep = F.max_pool2d(1 - moved, 7, 1, 3)[0] == 0
        if deep.sum() > 20 and far.sum() > 200:
            assert grey[deep].quantile(0.1) > grey[far].quantile(0.995)
            compared += 1
        if moved.any():
            rows, columns = moved[0].any(1).nonzero(), moved[0].any(0).nonzero()
            extent = torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
            inward = (extent - box[0]) * torch.tensor([1, 1, -1, -1])
            assert inward.min() > -1.5
            # the box is tight, unless cut at the edge or turned twice
            if name not in ("medklip", "kad") and box.min() > 1 and box.max() < size - 1:
                assert inward.max() < 2
        assert float(box.min()) >= 0
        assert float(box.max()) <= size
    assert compared >= (10 if train else 1)


def test_boxes_that_leave_the_image_are_marked():
    transform = build_transform("mgca", 224, False)  # cuts 16 pixels off every side of 256
    image = torch.zeros(1, 256, 256, dtype=torch.uint8)
    boxes = [
        [100, 100, 120, 140],  # whole
        [0, 0, 10, 10],  # outside
        [0, 100, 20, 200],  # 20 % left
        [0, 100, 17, 200],  # 1 of 17 pixels left
        [100, 100, 100.5, 120],  # thinner than a pixel
        [0, 0, 256, 256],  # the whole image
    ]
    _, mask, moved, keep = transform.finish_joint(image, None, torch.tensor(boxes, dtype=torch.float32))
    assert mask is None
    assert keep.tolist() == [True, False, True, False, False, True]
    assert moved[[0, 2, 5]].tolist() == [[84, 84, 104, 124], [0, 84, 4, 184], [0, 0, 224, 224]]
    nothing = transform.finish_joint(image)
    assert nothing[1] is nothing[2] is None
    assert nothing[3].shape == (0,)


def test_what_the_resize_cropped_counts_as_lost():
    """5 of 100 pixels are inside the resized image; the next step loses none, and yet the box is not kept."""
    transform = build_transform("chexzero", 224, False)
    boxes = torch.tensor([[-95.0, 0, 5, 100], [-85, 0, 15, 100]])
    _, _, moved, keep = transform.finish_joint(torch.zeros(1, 320, 320, dtype=torch.uint8), None, boxes)
    assert torch.allclose(moved, torch.tensor([[0, 0, 3.5, 70], [0, 0, 10.5, 70]]))
    assert keep.tolist() == [False, True]


def test_a_box_that_was_cropped_away_does_not_come_back():
    """ConVIRT crops and then shifts and turns: what the crop cut off is black afterwards, not part of a box."""
    image = torch.zeros(1, 128, 128, dtype=torch.uint8)
    image[:, :, :30] = 255
    mask = image > 0
    transform = build_transform("convirt", 64, True)
    gone = 0
    for seed in range(60):
        torch.manual_seed(seed)
        _, moved, _, keep = transform.finish_joint(image, mask, torch.tensor([[0.0, 0, 30, 128]]))
        gone += not moved.any()
        assert moved.any() or not keep[0]
    assert gone > 0


@pytest.mark.parametrize("name", _RandomOperation.names)
@pytest.mark.parametrize("sign", [-1, 1])
def test_random_operations_move_all_or_nothing(name, sign):
    image, mask, boxes = _phantom()
    operation = _RandomOperation()
    params = {"name": name, "sign": sign}
    before = (
        tv_tensors.Image(image),
        tv_tensors.Mask(mask.to(torch.uint8)),
        tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[1:], clamping_mode=None),
    )
    moved_image, moved_mask, moved_boxes = (operation.transform(x, params) for x in before)
    bright = moved_image[0] > 170
    overlap = (bright & moved_mask[0].bool()).sum() / (bright | moved_mask[0].bool()).sum()
    assert overlap > 0.93
    rows, columns = moved_mask[0].any(1).nonzero(), moved_mask[0].any(0).nonzero()
    extent = torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    assert (extent - moved_boxes[0]).abs().max() < 1.5
    moves = name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
    assert torch.equal(moved_mask, before[1]) != moves
    if name.startswith("translate"):
        assert (moved_boxes - boxes).abs().max() == 7


def test_wrong_input_is_explained():
    transform = build_transform("mgca", 224, True)
    with pytest.raises(DataError, match="pad:256"):
        transform.finish(torch.zeros(1, 224, 224, dtype=torch.uint8))
    with pytest.raises(DataError, match="float32"):
        transform.finish(torch.zeros(1, 256, 256))
    with pytest.raises(DataError, match="mask"):
        transform.finish_joint(torch.zeros(1, 256, 256, dtype=torch.uint8), torch.zeros(1, 224, 224, dtype=torch.bool))


def test_unknown_name_and_size():
    with pytest.raises(ConfigError, match="g2d_paper"):
        build_transform("g2d", 224, True)
    with pytest.raises(ConfigError, match="image_size must be at least 8"):
        build_transform("plain", 4, True)
