"""Stored features that are damaged are refused in one line."""

import json
import shutil

import numpy as np
import pytest
import torch

from medvlp.errors import DataError
from medvlp.tasks.features import StoredFeatures, _finish, _Writer

IDS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    writer = _Writer(folder / "part/shard0", (1, 3), "float32")
    batch = {
        "id": IDS,
        "index": torch.arange(3),
        "label": torch.zeros(3, 1),
        "boxes": [torch.zeros(1, 4)] * 3,
        "box_labels": [torch.zeros(1, dtype=torch.int64)] * 3,
    }
    writer.add([np.ones((3, 2), np.float32)], batch)
    writer.close()
    _finish(folder / "part", 1, 1)
    return folder / "part"


def _facts(**changes):
    def damage(folder):
        path = folder / "features.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def _file(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def _array(name, array):
    return lambda folder: np.save(folder / "shard0" / name, array)


@pytest.mark.parametrize(
    "damage",
    [
        _file("features.json", b"[]"),
        _file("features.json", b'"x"'),
        _file("features.json", b"\xff"),
        _file("features.json", b"[" * 100_000),
        _facts(shards="x"),
        _facts(shards=0),
        _facts(views=None),
        _facts(levels=-1),
        _facts(side=1.5),
        _facts(skipped=5),
        _facts(skipped=[1]),
        _facts(plain=7),
        _facts(plain=["absent"]),
        _file("shard0/level0.npy", b""),
        _file("shard0/boxes.npz", b"PK\x03\x04"),
        _array("level0", np.ones((1, 2, 2), np.float32)),
        _array("index", np.array([[0, 1, 7]])),
        _array("index", np.array([0, 1, 2])),
        _array("label", np.zeros((1, 2, 1), np.float32)),
        lambda folder: np.savez(folder / "shard0/boxes.npz", boxes=np.zeros((3, 4)), labels=np.zeros(3)),
        lambda folder: np.savez(
            folder / "shard0/boxes.npz", boxes=np.zeros((3, 4)), labels=np.zeros(3), offsets=[0, 2, 1, 3]
        ),
    ],
)
def test_damaged_features_are_refused(stored, tmp_path, damage):
    folder = shutil.copytree(stored, tmp_path / "copy")
    assert len(StoredFeatures(folder, IDS)) == 3
    damage(folder)
    with pytest.raises(DataError, match=r"damaged stored features .*; delete the folder") as caught:
        StoredFeatures(folder, IDS)
    assert "\n" not in str(caught.value)
