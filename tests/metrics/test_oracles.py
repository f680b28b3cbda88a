"""What an oracle, a prediction of nothing and a constant prediction score, in every metric of every protocol.

Each case gives the value of **every** name that the measures return: a metric that is added must be added here.
"""

import math

import pytest
import torch

from medvlp.metrics.classification import classification_measures
from medvlp.metrics.detection import RATES, detection_measures
from medvlp.metrics.grounding import THRESHOLDS, grounding_measures, grounding_statistics
from medvlp.metrics.retrieval import precision_statistics, recall_columns, retrieval_measures
from medvlp.metrics.samples import Ragged, Samples
from medvlp.metrics.segmentation import mask_statistics, segmentation_measures

N = 600
NAN = math.nan


def rows(**columns):
    return Samples(torch.arange(len(next(iter(columns.values())))), columns)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- classification

LABELS = (random(N, 2) < torch.tensor([0.3, 0.1])).float()
SHARE = LABELS.mean(0).tolist()
NAMES = ["a", "b"]


def classes(score):
    return classification_measures(rows(score=score, label=LABELS), names=NAMES, thresholds=torch.tensor([0.5, 0.5]))


def per_class(**values):
    """Each of two classes, and their mean."""
    made = {"classes_absent": 0.0}
    for name, (a, b) in values.items():
        made |= {f"{name}/a": a, f"{name}/b": b, name: (a + b) / 2}
    return made


ALL_POSITIVE = [2 * share / (1 + share) for share in SHARE]
CLASSIFICATION = {
    # All scores differ. MedKLIP's accuracy takes the one positive that gives the threshold for a negative.
    "oracle": (
        lambda: classes(0.5 * LABELS + 0.1 + 0.3 * random(N, 2, seed=1)),
        per_class(
            **dict.fromkeys(("auroc", "average_precision", "f1", "accuracy", "f1_medklip", "f1_kad"), (1, 1)),
            accuracy_kad=(1, 1),
            accuracy_medklip=(1 - 1 / N, 1 - 1 / N),
        ),
    ),
    "nothing": (
        lambda: classes(torch.zeros(N, 2)),
        per_class(
            auroc=(0.5, 0.5),
            average_precision=SHARE,
            f1=(0, 0),
            accuracy=[1 - share for share in SHARE],
            f1_medklip=ALL_POSITIVE,
            accuracy_medklip=[1 - share for share in SHARE],
            f1_kad=ALL_POSITIVE,
            accuracy_kad=SHARE,
        ),
    ),
    "constant": (
        lambda: classes(torch.full((N, 2), 0.7)),
        per_class(
            auroc=(0.5, 0.5),
            average_precision=SHARE,
            f1=ALL_POSITIVE,
            accuracy=SHARE,
            f1_medklip=ALL_POSITIVE,
            accuracy_medklip=[1 - share for share in SHARE],
            f1_kad=ALL_POSITIVE,
            accuracy_kad=SHARE,
        ),
    ),
}

ONE_HOT = torch.eye(2)[(random(N, seed=2) < 0.3).long()]
FIRST = float(ONE_HOT[:, 0].mean())


def top_1(score):
    return classification_measures(rows(score=score, label=ONE_HOT), names=NAMES, multiclass=True)


MULTICLASS = {
    "oracle": (
        lambda: top_1(ONE_HOT),
        {**per_class(auroc=(1, 1), average_precision=(1, 1), f1=(1, 1)), "accuracy": 1},
    ),
    # Equal scores go to the first class.
    "constant": (
        lambda: top_1(torch.ones(N, 2)),
        {
            **per_class(auroc=(0.5, 0.5), average_precision=(FIRST, 1 - FIRST), f1=(2 * FIRST / (1 + FIRST), 0)),
            "accuracy": FIRST,
        },
    ),
}

# --------------------------------------------------------------------------------------------------- segmentation

MASKS = torch.zeros(20, 16, 16)
for _i in range(0, 20, 2):  # half of the images, a sixteenth of the area each
    MASKS[_i, 4:8, _i // 2 : _i // 2 + 4] = 1
AREA = 1 / 16


def overlap(probability):
    return segmentation_measures(rows(**mask_statistics(probability, MASKS)), batch_size=8)


FLOORS = {
    "floor/dice_all": 0.5,
    "floor/dice_mgca": 0.5,
    "floor/mdice": (2 * 20 * 256 - 2 * 160) / (2 * 20 * 256 - 160) / 2,
    "floor/miou_medklip": 0.5 + 0.5 / 17,
}
DICES = ("dice_positive", "dice_all", "dice_mgca", "dice_negative", "dice_dataset", "mdice")
SEGMENTATION = {
    "oracle": (lambda: overlap(MASKS), {**FLOORS, **dict.fromkeys((*DICES, "iou_positive", "miou_medklip"), 1)}),
    "nothing": (
        lambda: overlap(MASKS * 0),
        {
            **FLOORS,
            **{name.removeprefix("floor/"): value for name, value in FLOORS.items()},
            **{"dice_positive": 0, "dice_negative": 1, "dice_dataset": 0, "iou_positive": 0},
        },
    ),
    "constant": (
        lambda: overlap(MASKS * 0 + 1),
        {
            **FLOORS,
            "dice_positive": 2 * AREA / (1 + AREA),
            "dice_negative": 0,
            "dice_all": AREA / (1 + AREA),
            "dice_mgca": AREA / (1 + AREA),
            "dice_dataset": AREA / (1 + AREA / 2),
            "mdice": AREA / (1 + AREA / 2) / 2,
            "iou_positive": AREA,
            "miou_medklip": (17 / 257 + 1 / 257) / 2,
        },
    ),
}

# ------------------------------------------------------------------------------------------------------ detection

BOX = torch.tensor([[10.0, 20.0, 60.0, 90.0]])
POSITIVE = random(N, seed=3) < 0.25
BOXED = float(POSITIVE.float().mean())


def boxes(found, score):
    """The one box in the images that have it, and predictions: ``found`` (N,) bool of that same box."""
    some = [BOX if there else BOX[:0] for there in found]
    truth = [BOX if there else BOX[:0] for there in POSITIVE]
    columns = {
        "boxes": some,
        "scores": [torch.full((len(b),), score) for b in some],
        "labels": [torch.zeros(len(b)) for b in some],
        "truth": truth,
        "truth_labels": [torch.zeros(len(b)) for b in truth],
    }
    return detection_measures(Samples(torch.arange(N), {}, {k: Ragged.of(v) for k, v in columns.items()}))


SENSITIVITIES = [f"sensitivity@{rate:g}" for rate in RATES]
# Of a constant box the share f / (1 − p) of the images may be shown before there are f false ones per image.
CHANCE = {f"sensitivity@{rate:g}": min(1, rate / (1 - BOXED)) for rate in RATES}
DETECTION = {
    "oracle": (
        lambda: boxes(POSITIVE, 0.9),
        {**dict.fromkeys(("map_coco", "map_mgca", "ap@0.50", "froc", *SENSITIVITIES), 1), "images_mgca": BOXED},
    ),
    # The papers' number skips the images on which nothing is found: nothing is left.
    "nothing": (
        lambda: boxes(POSITIVE & False, 0.9),
        {**dict.fromkeys(("map_coco", "ap@0.50", "froc", "images_mgca", *SENSITIVITIES), 0), "map_mgca": NAN},
    ),
    # It also skips the images without a box, and takes a constant box for an oracle where that box is the right one.
    "constant": (
        lambda: boxes(POSITIVE | True, 0.9),
        {
            **{"map_coco": BOXED, "ap@0.50": BOXED, "map_mgca": 1, "images_mgca": BOXED},
            **{**CHANCE, "froc": sum(CHANCE.values()) / len(CHANCE)},
        },
    ),
}

# ------------------------------------------------------------------------------------------------------ grounding

KINDS = torch.arange(20) // 2 % 2


def heat(maps):
    columns = grounding_statistics(maps, MASKS)
    return grounding_measures(rows(**columns, category=KINDS), categories=NAMES)


def grounded(iou, dice, recall, precision, **others):
    made = dict(others)
    for name, value in {"iou": iou, "dice": dice, "recall": recall, "precision": precision}.items():
        made |= {f"{name}@{t:g}": value for t in THRESHOLDS}
    averaged = {**{f"iou@{t:g}": iou for t in THRESHOLDS}, "miou": iou, "cnr": 0, "cnr_absolute": 0}
    for name, value in averaged.items():
        made |= dict.fromkeys((name, f"{name}_category", f"{name}/a", f"{name}/b"), value)
    return made


GROUNDING = {
    # Contrast has no ceiling; of two flat levels it is 0 by definition.
    "oracle": (
        lambda: heat(2 * MASKS - 1),
        grounded(1, 1, 1, 1, pointing_game=1, pointing_medklip=1, pixel_ap=1),
    ),
    # Of a flat map every pixel is maximal: the papers' pointing game is always won.
    "nothing": (
        lambda: heat(MASKS * 0 - 1),
        grounded(0, 0, 0, 0, pointing_game=AREA, pointing_medklip=1, pixel_ap=AREA),
    ),
    "constant": (
        lambda: heat(MASKS * 0 + 1),
        grounded(AREA, 2 * AREA / (1 + AREA), 1, AREA, pointing_game=AREA, pointing_medklip=1, pixel_ap=AREA),
    ),
}

# ------------------------------------------------------------------------------------------------------ retrieval

CLASS = torch.arange(40) % 4
CUTS = {"recalls": (1, 5), "precisions": (5, 9)}
WAYS = ("i2t", "t2i", "i2i")


def pairs(image, text):
    columns = recall_columns(image, text, k=CUTS["recalls"])
    for way, queries, keys in (("i2t", image, text), ("t2i", text, image), ("i2i", image, image)):
        itself = torch.arange(40) if way == "i2i" else None
        values = precision_statistics(queries, keys, CLASS, CLASS, CUTS["precisions"], itself)
        columns[f"precision_{way}"], columns[f"chance_precision_{way}"] = values
    return retrieval_measures(rows(**columns), **CUTS)


BY_CHANCE = {
    **{f"recall@{k}/{way}": k / 40 for k in (1, 5) for way in WAYS[:2]},
    **{f"precision@{k}/{way}": 9 / 39 if way == "i2i" else 0.25 for k in (5, 9) for way in WAYS},
}
LEVELS = {f"chance/{name}": value for name, value in BY_CHANCE.items()}
KNOWING = torch.cat([3 * torch.eye(4)[CLASS], torch.eye(40)], 1)
RETRIEVAL = {
    "oracle": (lambda: pairs(KNOWING, KNOWING), {**LEVELS, **dict.fromkeys(BY_CHANCE, 1)}),
    "constant": (lambda: pairs(torch.ones(40, 3), torch.ones(40, 3)), {**LEVELS, **BY_CHANCE}),
}

CASES = {
    f"{task} {kind}": case
    for task, cases in {
        "classification": CLASSIFICATION,
        "multiclass": MULTICLASS,
        "segmentation": SEGMENTATION,
        "detection": DETECTION,
        "grounding": GROUNDING,
        "retrieval": RETRIEVAL,
    }.items()
    for kind, case in cases.items()
}


@pytest.mark.parametrize("case", CASES)
def test_oracle_nothing_and_constant(case):
    measure, want = CASES[case]
    got = measure()
    assert got.keys() == want.keys()
    # A constant box ties all images, whose order then decides: chance up to its noise.
    tolerance = 0.05 if case == "detection constant" else 1e-6
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(float(value), abs=tolerance, nan_ok=True), name


def test_contrast_of_a_noisy_oracle_is_large_and_of_noise_small():
    noise = random(20, 16, 16, seed=5)
    assert float(heat(MASKS + 0.1 * noise)["cnr"]) > 10
    assert abs(float(heat(noise)["cnr"])) < 0.2
