"""Two and four gloo processes against one: same loss, gradients and evaluation; also where they encode in chunks."""

import socket

import ddp_workers
import pytest
import torch
from ddp_workers import CASES, CHUNKED
from helpers import selected

TOLERANCE = 1e-5


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def groups(tiny_phantom, tmp_path_factory, request) -> dict[int, list[dict]]:
    """Results of the processes of each world size of the selected tests, and of two."""
    found = {}
    for world in {2, *(world for (world,) in selected(request, "world"))}:
        folder = tmp_path_factory.mktemp(f"gloo{world}")
        arguments = (str(folder), str(tiny_phantom), _free_port(), world)
        torch.multiprocessing.spawn(ddp_workers.work, arguments, nprocs=world)
        found[world] = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
    return found


@pytest.fixture(scope="module")
def ranks(groups) -> list[dict]:
    """Results of both of two processes."""
    return groups[2]


@pytest.fixture(scope="module")
def alone() -> dict:
    """Results of one process with the whole batch."""
    return ddp_workers.alone()


def _distance(gradients: dict, wanted: dict) -> float:
    """Largest deviation, each parameter against the largest of its gradients."""
    assert gradients.keys() == wanted.keys()
    # Parameters before a batch norm that only shift have a gradient of zero, up to rounding: hence the floor.
    return max(
        float((gradients[name] - value).abs().max() / value.abs().max().clamp_min(1e-6))
        for name, value in wanted.items()
    )


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.variant)])
@pytest.mark.parametrize("case", [*CASES, *CHUNKED])
def test_processes_equal_one(groups, alone, case, world):
    whole = alone[case]
    assert ("pixel" in whole["terms"]) == case.startswith("g2d")
    for term, value in whole["terms"].items():
        mean = sum(rank[case]["terms"][term] for rank in groups[world]) / world
        assert mean == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE)
    for rank in groups[world]:
        # DistributedDataParallel gives each parameter of each rank the mean over ranks.
        wanted = {name.removeprefix("method."): g for name, g in whole["gradients"].items()}
        assert _distance(rank[case]["gradients"], wanted) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_trained(alone, case):
    zero = [name for name, g in alone[case]["gradients"].items() if not g.abs().max() > 0]
    # A shift before a batch norm changes nothing; exactly zero gradients are those of parameters that are never read.
    assert not zero


def test_gradient_through_the_other_rank_matters(ranks, alone):
    """Without it the gradients differ by far more than the tolerance above."""
    assert _distance(ranks[0]["template per rank"]["gradients"], alone["template"]["gradients"]) > 1e-2


def test_official_contrast_is_per_rank(ranks, alone):
    for rank, made in enumerate(ranks):
        for term, value in alone[f"local {rank}"]["terms"].items():
            assert made["local"]["terms"][term] == pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE)
        halves = [alone[f"local {r}"]["gradients"] for r in range(2)]
        mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
        assert _distance(made["local"]["gradients"], mean) < TOLERANCE
    assert alone["local 0"]["terms"]["contrast"] != pytest.approx(alone["local 1"]["terms"]["contrast"])


def test_all_gather(ranks):
    first = torch.arange(6.0).view(3, 2)
    for made in ranks:
        assert made["gather"]["gathered"].tolist() == torch.cat([first, first + 10]).tolist()
    # Weights of rank 0 are 1 everywhere, those of rank 1 are 1 to 6; each row gets the sum of both.
    assert ranks[0]["gather"]["gradient"].tolist() == [[2, 2], [3, 3], [4, 4]]
    assert ranks[1]["gather"]["gradient"].tolist() == [[5, 5], [6, 6], [7, 7]]


def test_evaluation_counts_each_item_once(ranks, tiny_phantom, tmp_path):
    """19 studies on 2 ranks: one is repeated to fill up, and must not count twice."""
    one = ddp_workers.evaluate(str(tiny_phantom), str(tmp_path), 1)
    assert one["evaluation"]["studies"] == 19
    for made in (rank["evaluation"] for rank in ranks):
        assert made["evaluation"]["studies"] == 19
        assert made["names"] == one["names"]
        for key, value in one["evaluation"].items():
            if key != "zero_shot":
                assert made["evaluation"][key] == pytest.approx(value, abs=1e-6), key
        assert made["evaluation"]["zero_shot"] == pytest.approx(one["evaluation"]["zero_shot"], abs=1e-6)
        for key, value in one["logged"].items():
            if "auroc" in key or "recall" in key:
                assert made["logged"][key] == pytest.approx(value, abs=1e-6), key


def test_ranks_stay_together_in_training(ranks):
    first, second = (rank["evaluation"]["weights"] for rank in ranks)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)
