import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from medvlp.phantom import Difficulty, PhantomSpec, write_phantom
from medvlp.phantom.cases import sample_studies, split_of
from medvlp.phantom.layouts import object_cxr
from medvlp.phantom.truth import MANIFEST, is_complete_tree, read_truth_masks

SPEC = PhantomSpec(studies=140, seed=11, size=128, difficulty=Difficulty(prevalence=2))
SMALL = PhantomSpec(studies=30, seed=2, size=48)
FOLDERS = {"train": "train", "validate": "dev", "test": "test"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_phantom("object_cxr", tmp_path_factory.mktemp("object_cxr"), SPEC)


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def annotations(tree):
    """Image path below the root to its list of (type, numbers)."""
    out = {}
    for folder in ("train", "dev", "test"):
        with open(tree / f"{folder}.csv", newline="") as file:
            for row in csv.DictReader(file):
                name = row.get("image_name") or row["image_path"]
                name = name if "/" in name else f"{folder}/{name}"
                shapes = [[int(n) for n in shape.split(" ")] for shape in row["annotation"].split(";") if shape]
                out[name] = [(shape[0], shape[1:]) for shape in shapes]
    return out


def inside(kind, numbers, height, width):
    """Slow and plain: whether the centre of each pixel lies in the shape."""
    out = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5, row + 0.5
            if kind == 2:
                points = list(zip(numbers[::2], numbers[1::2], strict=True))
                odd = False
                for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
                    if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
                        odd = not odd
                out[row, column] = odd
            else:
                x1, y1, x2, y2 = numbers
                u, v = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
                out[row, column] = u * u + v * v <= 1 if kind == 1 else max(abs(u), abs(v)) <= 1
    return out


def test_tree_and_dialects(tree):
    tables = {"train.csv", "dev.csv", "test.csv"}
    assert {path.name for path in tree.iterdir()} == {"train", "dev", "test", "truth", *tables, MANIFEST}
    for folder, column, start in (
        ("train", "image_name", 1),
        ("dev", "image_name", 8001),
        ("test", "image_path", 9001),
    ):
        header, *lines = (tree / f"{folder}.csv").read_text().split("\n")[:-1]
        assert header == f"{column},annotation"
        files = sorted(path.name for path in (tree / folder).iterdir())
        assert files == [f"{number:05d}.jpg" for number in range(start, start + len(files))]
        prefix = "test/" if folder == "test" else ""
        assert [line.split(",")[0] for line in lines] == [prefix + name for name in files]
        assert all(line.count(",") == 1 and '"' not in line for line in lines)


def test_grammar_and_bounds(tree):
    kinds, counts = set(), set()
    for name, shapes in annotations(tree).items():
        width, height = Image.open(tree / name).size
        counts.add(min(len(shapes), 2))
        for kind, numbers in shapes:
            kinds.add(kind)
            x, y = numbers[::2], numbers[1::2]
            assert len(x) == len(y) == (2 if kind < 2 else max(len(x), 3))
            assert min(numbers) >= 0
            assert max(x) <= width
            assert max(y) <= height
            if kind < 2:
                assert x[0] < x[1]
                assert y[0] < y[1]
            else:
                assert (x[0], y[0]) != (x[-1], y[-1])  # not closed
    assert kinds == {0, 1, 2}
    assert counts == {0, 1, 2}


def test_shapes_cover_the_object_and_little_else(tree):
    checked = 0
    for name, shapes in annotations(tree).items():
        masks = read_truth_masks(tree / f"truth/masks/{name[-9:-4]}.npz")
        assert bool(shapes) == ("Foreign Object" in masks)
        if not shapes or checked >= 12:
            continue
        mask = masks["Foreign Object"]
        drawn = np.logical_or.reduce([inside(kind, numbers, *mask.shape) for kind, numbers in shapes])
        assert not (mask & ~drawn).any()
        y, x = np.nonzero(mask)
        box = (x.max() - x.min() + 1) * (y.max() - y.min() + 1)
        assert drawn.sum() <= 2 * box + 20
        checked += 1
    assert checked == 12


def test_images_and_truth_have_one_size(tree):
    modes, sizes = set(), set()
    for path in sorted(tree.glob("*/*.jpg")):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            modes.add(image.mode)
            sizes.add(image.size)
            masks = read_truth_masks(tree / f"truth/masks/{path.stem}.npz")
            assert masks["lungs"].shape == image.size[::-1]
            assert all(abs(side - SPEC.size) <= 0.13 * SPEC.size for side in image.size)
    assert modes == {"L", "RGB"}
    assert len(sizes) > 10
    assert (128, 128) in sizes


def test_patients_and_splits(tree):
    with open(tree / "truth/labels.csv", newline="") as file:
        rows = {int(row["study"]): row for row in csv.DictReader(file)}
    names = annotations(tree)
    for study in sample_studies(SPEC):
        row = rows[study.index]
        split = split_of(SPEC, study.patient.index)
        assert (int(row["patient"]), row["split"]) == (study.patient.index, split)
        found = {finding.name for finding in study.findings}
        assert (row["Foreign Object"] == "1") == ("Foreign Object" in found)
        assert bool(names[f"{FOLDERS[split]}/{row['image_id']}.jpg"]) == ("Foreign Object" in found)
    assert len(rows) == SPEC.studies
    # Neighbouring numbers are not one patient's.
    assert [rows[study.index]["image_id"] for study in sample_studies(SPEC)] != sorted(
        row["image_id"] for row in rows.values()
    )


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_every_shape_type_covers_any_mask(kind):
    rng = np.random.default_rng(5)
    single = np.zeros((9, 11), dtype=bool)
    single[4, 7] = True
    masks = [single, np.eye(13, dtype=bool)]
    for _ in range(20):
        mask = np.zeros((24, 30), dtype=bool)
        top, left = rng.integers(6, 14, 2)
        mask[top : top + 5, left : left + 7] = rng.random((5, 7)) < 0.4
        if mask.any():
            masks.append(mask)
    for mask in masks:
        found, *numbers = [int(n) for n in object_cxr.shape_of(mask, kind).split(" ")]
        assert found == kind or (kind == 1 and found == 0)
        assert not (mask & ~inside(found, numbers, *mask.shape)).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_odd_cases_occur_from_100_studies_on(tmp_path, seed):
    tree = write_phantom("object_cxr", tmp_path / "tree", PhantomSpec(studies=100, seed=seed, size=96))
    shapes = annotations(tree).values()
    assert {kind for one in shapes for kind, _ in one} == {0, 1, 2}
    assert {min(len(one), 2) for one in shapes} == {0, 1, 2}
    facts = json.loads((tree / MANIFEST).read_text())
    assert facts["annotated"] == sum(bool(one) for one in shapes)
    assert sum(facts["shapes"].values()) == sum(map(len, shapes))


def test_without_foreign_objects_all_annotations_are_empty(tmp_path):
    spec = PhantomSpec(studies=12, seed=3, size=32, findings=("Nodule", "Mass"))
    shapes = annotations(write_phantom("object_cxr", tmp_path / "tree", spec))
    assert len(shapes) == 12
    assert not any(shapes.values())


def test_same_bytes_again_and_with_two_processes(tmp_path):
    one = digests(write_phantom("object_cxr", tmp_path / "one", SMALL))
    two = digests(write_phantom("object_cxr", tmp_path / "two", SMALL, workers=2))
    assert one == two
    assert is_complete_tree(tmp_path / "one", "object_cxr", SMALL)
