"""Mirrors whose images have another ending than the released tables name."""

from pathlib import Path

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from PIL import Image

from medvlp.datasets import corpus_class
from medvlp.datasets.folders import with_other_endings
from medvlp.doctor import examine
from medvlp.io.images import read_image
from medvlp.phantom import PhantomSpec, write_phantom

LAYOUTS = {
    "chexpert": ".png",
    "mimic_cxr": ".png",
    "rsna": ".png",
    "siim": ".jpg",
    "cxr14": ".jpg",
    "object_cxr": ".png",
    "ms_cxr": ".png",
    "open_i": ".jpeg",
}


def _renamed(root: Path, ending: str) -> int:
    count = 0
    for path in sorted(root.rglob("*")):
        if path.suffix in (".jpg", ".png", ".dcm") and not path.is_relative_to(root / "truth"):
            kind = "JPEG" if ending.startswith(".j") else "PNG"
            Image.fromarray(np.asarray(read_image(path))).save(path.with_suffix(ending), kind)
            path.unlink()
            count += 1
    return count


def _content(corpus):
    records = corpus.records()
    listing = corpus.listing()
    table = records.table.drop_columns(["image"]).to_pandas()
    return table, listing.ids.tolist(), listing.patients.tolist(), corpus.split_keys(records).tolist()


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_and_splits_are_the_same(tmp_path, name):
    write_phantom(name, tmp_path, PhantomSpec(studies=14, size=48, seed=3))
    corpus = corpus_class(name)
    before = _content(corpus(tmp_path))
    assert not corpus(tmp_path).substituted
    assert _renamed(tmp_path, LAYOUTS[name])
    changed = corpus(tmp_path)
    with pytest.warns(UserWarning, match="are taken from files with another ending than listed, such as"):
        after = _content(changed)
    assert [a == b for a, b in zip(after[1:], before[1:], strict=True)] == [True] * 3
    assert_frame_equal(after[0], before[0])
    paths = changed.records().table.column("image").to_pylist()
    assert all(path.endswith(LAYOUTS[name]) and Path(path).is_file() for path in paths)
    if "grounding" in corpus.tasks:
        records = changed.records("grounding")
        assert set(changed.split_keys(records)) <= set(after[1])


def test_covidx(tmp_path):
    write_phantom("covidx", tmp_path, PhantomSpec(studies=14, size=48, seed=3))
    make = lambda: corpus_class("covidx")(tmp_path, version="COVIDx9A")  # noqa: E731
    before = _content(make())
    for path in (tmp_path / "train").iterdir():
        Image.fromarray(read_image(path)).save(path.with_suffix(".jpeg" if path.suffix == ".jpg" else ".jpg"), "JPEG")
        path.unlink()
    with pytest.warns(UserWarning, match="another ending"):
        after = _content(make())
    assert_frame_equal(after[0], before[0])
    assert after[1:] == before[1:]


def test_the_doctor_counts_them(tmp_path):
    write_phantom("chexpert", tmp_path, PhantomSpec(studies=14, size=48, seed=3))
    _renamed(tmp_path, ".png")
    diagnosis = examine(corpus_class("chexpert")(tmp_path))
    assert diagnosis.ok
    (note,) = [check for check in diagnosis.at("note") if check.name == "image endings"]
    assert "have another ending than the tables name" in note.found
    assert all(item.endswith(".png") for item in note.items)


def test_the_listed_file_comes_first():
    files = {
        "a.jpg": "/a.jpg",
        "a.png": "/a.png",
        "b.jpeg": "/b.jpeg",
        "b.png": "/b.png",
        "C.DCM": "/C.DCM",
        "d.txt": "",
    }
    found = with_other_endings(["a.jpg", "b.jpg", "C.png", "d.jpg", "e.jpg", "f"], files)
    assert found == {"a.jpg": "/a.jpg", "b.jpg": "/b.png", "C.png": "/C.DCM"}
