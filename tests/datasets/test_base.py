import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medvlp.datasets.base import RadiographDataset, make_table, sample_text
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.reports import clean_text, gloria_sentences
from medvlp.splits import hash_split, nested_fraction
from medvlp.transforms import build_transform


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (20, 16), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def _dataset(folder, n=6, **options):
    columns = {
        "id": [f"i{i}" for i in range(n)],
        "image": [folder / f"{i}.png" for i in range(n)],
        "text": [f"Number {i} here. Size 2.5 cm. Third." for i in range(n)],
        "patient": [f"p{i // 2}" for i in range(n)],
    }
    labels = pd.DataFrame({"Edema": [1, 0, -1, None, 1, 0][:n], "Mass": [0.0] * n})
    return RadiographDataset(make_table(columns, labels), **options)


def test_sample_without_transform(folder):
    sample = _dataset(folder)[2]
    assert sample["image"].shape == (3, 20, 16)
    assert 0 <= sample["image"].min() <= sample["image"].max() <= 1
    assert sample["image"].dtype == torch.float32
    assert (sample["id"], sample["index"], sample["skipped"]) == ("i2", 2, [])
    assert sample["text"] == "Number 2 here. Size 2.5 cm. Third."
    assert sample["label"].tolist() == [-1, 0]


def test_properties(folder):
    data = _dataset(folder)
    assert len(data) == 6
    assert data.label_names == ("Edema", "Mass")
    assert data.labels.shape == (6, 2)
    assert torch.isnan(data.labels[3, 0])
    assert data.ids == [f"i{i}" for i in range(6)]
    assert data.texts[0].startswith("Number 0")
    assert data.groups == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert list(data.dropped.columns) == ["id", "row", "reason", "broken"]
    part = data.subset(np.array([0, 1, 0, 0, 0, 1], bool))
    assert part.ids == ["i1", "i5"]
    assert part.labels[:, 0].tolist() == [0, 0]


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder):
    data = _dataset(folder).prepared(build_transform("phantom", 16, True), seed=1)
    a = data[3, 2]["image"]
    torch.manual_seed(0)
    _ = data[0], torch.rand(5)
    assert torch.equal(data[3, 2]["image"], a)
    assert torch.equal(pickle.loads(pickle.dumps(data))[3, 2]["image"], a)
    assert not torch.equal(data[3, 1]["image"], a)
    assert not torch.equal(data.prepared(data.transform, seed=2)[3, 2]["image"], a)
    assert torch.equal(data[3]["image"], data[3, 0]["image"])
    assert data[-1]["index"] == 5


def test_surrounding_random_stream_is_untouched(folder):
    data = _dataset(folder).prepared(build_transform("phantom", 16, True))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _ = data[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_one_random_sentence(folder):
    data = _dataset(folder).prepared(None, text_sampling="sentence")
    drawn = {data[1, e]["text"] for e in range(30)}
    assert drawn == {"Number 1 here.", "Size 2.5 cm.", "Third."}
    assert data[1, 7]["text"] == data[1, 7]["text"]
    assert data.texts[1].count(".") == 4  # the corpus stays whole


def test_one_random_sentence_as_gloria_makes_them():
    text = "1. No acute disease.  Normal.\n2. Small LEFT effusion, 2.5 cm, is stable since May. The heart is large."
    made = {sample_text(text, "gloria", seed) for seed in range(30)}
    # "Normal" is one word, "2." reads like the number of a list.
    assert made == {"no acute disease", "small left effusion", "5 cm is stable since may", "the heart is large"}
    assert " ".join(gloria_sentences(text)) == clean_text(text, "gloria")
    assert sample_text("Normal.", "gloria", 3) == "Normal."  # no sentence of two words


def test_raise_names_file_row_and_remedy(folder):
    (folder / "3.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UnreadableItemError, match=r"3\.png.*item i3, index 3.*on_error: skip") as caught:
        _dataset(folder)[3]
    assert caught.value.item_id == "i3"


def test_skip_takes_the_next_readable_item(folder):
    for i in (4, 5):
        (folder / f"{i}.png").unlink()
    data = _dataset(folder, on_error="skip")
    sample = data[4]
    assert (sample["index"], sample["id"]) == (0, "i0")  # wraps round
    assert [i for i, _ in sample["skipped"]] == ["i4", "i5"]
    assert all("missing file" in reason for _, reason in sample["skipped"])
    assert torch.equal(sample["label"], data.labels[0])
    for i in range(4):
        (folder / f"{i}.png").unlink()
    with pytest.raises(DataError, match="none of the 6 items"):
        data[0]


def test_bad_arguments(folder):
    with pytest.raises(DataError, match="lacks the column"):
        RadiographDataset(make_table({"id": ["a"], "text": ["b"]}))
    with pytest.raises(ConfigError):
        _dataset(folder, on_error="ignore")
    with pytest.raises(ConfigError):
        _dataset(folder, text_sampling="word")
    with pytest.raises(IndexError):
        _dataset(folder)[6]


def test_nested_fractions():
    groups = [f"p{i // 3}" for i in range(900)]
    one, ten, all_ = (nested_fraction(groups, f, seed=0) for f in (0.01, 0.1, 1.0))
    assert (one.sum(), ten.sum(), all_.sum()) == (9, 90, 900)
    assert (one <= ten).all()
    assert not np.array_equal(ten, nested_fraction(groups, 0.1, seed=1))
    order = np.random.default_rng(0).permutation(900)
    assert np.array_equal(nested_fraction([groups[i] for i in order], 0.1), ten[order])
    assert nested_fraction(["a", "b"], 0.01).sum() == 1
    assert nested_fraction([str(i) for i in range(30)], 0.1).sum() == 3
    assert len(nested_fraction([], 0.5)) == 0
    for wrong in (0, 1.5, -1):
        with pytest.raises(ConfigError):
            nested_fraction(groups, wrong)


def test_hash_split_is_stable():
    names = hash_split(range(2000), {"validate": 0.1, "test": 0.2})
    counts = {n: int((names == n).sum()) for n in ("train", "validate", "test")}
    assert 150 < counts["validate"] < 250
    assert 330 < counts["test"] < 470
    assert np.array_equal(hash_split(range(1000), {"validate": 0.1, "test": 0.2}), names[:1000])
    with pytest.raises(ConfigError):
        hash_split([1], {"validate": 0.7, "test": 0.7})
