"""The recipes on the real label files, against the published numbers."""

import gzip
import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medvlp.errors import DataError
from medvlp.splits import SplitInput, draw_fraction, make_split

ROOT = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
RSNA = ROOT / "rsna_stage_2_train_labels.csv.zip"
NIH = ROOT / "nih_Data_Entry_2017_v2020.csv.gz"


@cache
def rsna():
    if not RSNA.is_file():
        pytest.skip("the RSNA label file is not here")
    frame = pd.read_csv(RSNA)[["patientId", "Target"]].drop_duplicates()  # one row per image, in the order of the file
    ids = frame["patientId"].to_numpy(object)
    labels = pd.DataFrame({"Pneumonia": frame["Target"].to_numpy(float)})
    n = len(ids)
    return SplitInput(ids, ids, np.full(n, "train", object), np.full(n, ""), np.ones(n, bool), labels)


@cache
def nih():
    if not NIH.is_file():
        pytest.skip("the ChestX-ray14 label file is not here")
    frame = pd.read_csv(NIH, usecols=["Image Index", "Patient ID", "View Position"])
    with gzip.open(ROOT / "nih_test_list_derived.txt.gz", "rt") as file:
        test = set(file.read().split())
    return SplitInput(
        ids=frame["Image Index"].to_numpy(object),
        patients=frame["Patient ID"].astype(str).to_numpy(object),
        pool=np.where(frame["Image Index"].isin(test), "test", "train_val").astype(object),
        views=frame["View Position"].to_numpy(object),
        frontal=np.ones(len(frame), bool),
        labels=pd.DataFrame(index=range(len(frame))),
    )


def positives(inputs, split):
    values = inputs.labels["Pneumonia"].to_numpy()
    return tuple(int(values[part.records].sum()) for part in split.parts.values())


@pytest.mark.parametrize(
    ("name", "counts", "positive"),
    [
        ("mgca", (18_678, 4_003, 4_003), (4_162, 928, 922)),
        ("gloria", (18_678, 4_003, 4_003), (4_162, 928, 922)),
        ("mgca_detection", (16_010, 5_337, 5_337), (3_579, 1_182, 1_251)),
        ("g2d", (16_010, 5_337, 5_337), (3_579, 1_182, 1_251)),
        ("benchx", (18_678, 4_003, 4_003), (4_208, 902, 902)),
    ],
)
def test_rsna_numbers(name, counts, positive):
    inputs = rsna()
    split = make_split("rsna", name, inputs)
    assert tuple(split.counts.values()) == counts
    assert list(split.counts) == ["train", "validate", "test"]
    assert positives(inputs, split) == positive
    assert split.verified
    assert split.release == "stage 2"
    assert split.leaks == {}
    assert split.seed is None


def test_rsna_maco_is_the_first_images_by_id():
    inputs = rsna()
    split = make_split("rsna", "maco", inputs, strict=False)
    assert split.counts == {"train": 25_184, "validate": 1_500}
    assert positives(inputs, split) == (5_789, 223)
    with pytest.raises(DataError, match="records of test: expected 3,000, found 0"):
        make_split("rsna", "maco", inputs)
    # with the test images, whose labels were published later
    more = [np.concatenate([a, [f"z{i:04}" for i in range(3_000)]]) for a in (inputs.ids, inputs.patients)]
    full = SplitInput(
        *(m.astype(object) for m in more),
        pool=np.concatenate([inputs.pool, np.full(3_000, "test", object)]),
        views=np.full(29_684, ""),
        frontal=np.ones(29_684, bool),
        labels=inputs.labels.reindex(range(29_684)),
    )
    split = make_split("rsna", "maco", full)
    assert split.verified
    assert make_split("rsna", "clean", full).verified  # the unlabelled test images stay out of it
    assert make_split("rsna", "mgca", full).left_out.tolist() == list(range(26_684, 29_684))
    assert split.counts["test"] == 3_000


@pytest.mark.parametrize(
    ("split", "rule", "sizes"),
    [
        ("mgca", "mgca", (187, 1_868)),
        ("mgca_detection", "mgca_choice", (160, 1_601)),
        ("benchx", "benchx", (186, 1_867)),
    ],
)
def test_rsna_fractions(split, rule, sizes):
    inputs = rsna()
    part = make_split("rsna", split, inputs).parts["train"]
    drawn = [draw_fraction(rule, f, inputs, part) for f in (0.01, 0.1, 1.0)]
    assert tuple(d.sum() for d in drawn[:2]) == sizes
    assert drawn[2].all()


def test_benchx_fraction_starts_as_its_list():
    """The first lines of the released train_1.txt, in any order: the draw gives the same members."""
    inputs = rsna()
    part = make_split("rsna", "benchx", inputs).parts["train"]
    drawn = set(inputs.ids[part.records[draw_fraction("benchx", 0.01, inputs, part)]])
    assert {"518837e6-5dfa-47a6-9556-0260fd34e921", "468feb51-e690-4ba0-967d-62dec940b671"} <= drawn
    assert {"7ea025b8-66e9-4318-8860-001464f6df89", "dad07c65-2ba6-4717-bf2a-404fd777d962"} <= drawn


def test_maco_list_lies_in_its_train_part():
    """Three lines of MRM's train_1.txt, as it writes them."""
    inputs = rsna()
    part = make_split("rsna", "maco", inputs, strict=False).parts["train"]
    members = set(inputs.ids[part.records])
    assert "f1d1ceac-9e6d-4ca8-b0da-f918df585511" in members
    assert "71d63444-7863-449b-a3f6-d599b6d00e49" in members


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_is_the_recorded_one(seed):
    for corpus, inputs in (("rsna", rsna()), ("cxr14", nih_padded())):
        split = make_split(corpus, "clean", inputs, seed=seed)
        assert split.verified
        assert split.leaks == {}
        total = sum(split.counts.values())
        assert abs(split.counts["validate"] / total - 0.1) < 0.01


@cache
def nih_padded():
    """Patients as eight digits, as they begin the file names."""
    inputs = nih()
    patients = np.array([i[:8] for i in inputs.ids], dtype=object)
    return SplitInput(inputs.ids, patients, inputs.pool, inputs.views, inputs.frontal, inputs.labels)


def test_chestxray14():
    inputs = nih_padded()
    official = make_split("cxr14", "official", inputs)
    assert official.counts == {"train": 86_524, "test": 25_596}
    assert official.verified
    assert not official.leaks
    assert official.sha256["test"].startswith("38ca5ef7f756")
    assert make_split("cxr14", "medklip", inputs).sha256["test"] == official.sha256["test"]
    with pytest.warns(UserWarning, match="shares 4,588 patients train&validate"):
        kad = make_split("cxr14", "kad", inputs)
    assert kad.counts == {"train": 77_872, "validate": 8_652, "test": 25_596}
    assert kad.verified
    assert kad.leaks == {"patients train&validate": 4_588}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make_split("cxr14", "kad", inputs, seed=11)  # counts are recorded for any seed
    assert other.verified
    assert other.digest != kad.digest


def test_a_missing_row_is_refused():
    inputs = rsna()
    short = SplitInput(*(getattr(inputs, f)[1:] for f in ("ids", "patients", "pool", "views", "frontal", "labels")))
    with pytest.raises(DataError, match=r"expected 26,684, found 26,683.*check_split: false"):
        make_split("rsna", "mgca", short)
    split = make_split("rsna", "mgca", short, strict=False)
    assert not split.verified
    assert sum(split.counts.values()) == 26_683
