"""Two gloo processes give the metrics of one, on test parts of odd size, and write each row once."""

import socket

import evaluators
import pytest
import torch
from evaluators import checkpoint, evaluate, phantom

from medvlp.results import read_rows


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluators")
    made = {name: phantom(name, folder / name, 60) for name in ("siim", "ms_cxr", "mimic_cxr")}
    return {**made, "g2d": checkpoint(folder / "g2d.ckpt")}


@pytest.fixture(scope="module")
def together(places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(evaluators.work, (_free_port(), 2, places, str(folder)), nprocs=2)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["zero_shot", "grounding", "retrieval"])
def test_two_processes_are_one(places, together, tmp_path, name):
    folder, ranks = together
    alone = evaluate(name, places, str(tmp_path))
    for found in ranks:
        assert found[name].keys() == alone.keys()
        for metric, value in alone.items():
            assert found[name][metric] == pytest.approx(value, abs=1e-4, nan_ok=True), metric
    rows, once = (read_rows(place / "results.jsonl") for place in (folder / name, tmp_path))
    assert [row["metric"] for row in rows] == [row["metric"] for row in once]
    assert rows[0]["samples"] == once[0]["samples"]
    assert rows[0]["samples"] % 2 == 1
