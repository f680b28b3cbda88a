import pytest
import torch
from torch.utils.data import TensorDataset

from medvlp.datamodules.sampler import ResumableSampler

DATA = TensorDataset(torch.arange(23))


def _indices(**options):
    return [i for i, _ in ResumableSampler(DATA, **options)]


def test_an_epoch():
    sampler = ResumableSampler(DATA, seed=3)
    first = list(sampler)
    assert sorted(i for i, _ in first) == list(range(23))
    assert {e for _, e in first} == {0}
    assert first == list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert {e for _, e in second} == {1}
    assert [i for i, _ in second] != [i for i, _ in first]
    assert _indices(seed=4) != [i for i, _ in first]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_one_order(ranks):
    whole = _indices(seed=3)
    parts = [_indices(num_replicas=ranks, rank=r, seed=3) for r in range(ranks)]
    assert {len(p) for p in parts} == {23 // ranks}
    assert [i for step in zip(*parts, strict=True) for i in step] == whole[: 23 // ranks * ranks]


def test_start_stop_and_count():
    sampler = ResumableSampler(DATA, seed=3)
    whole = list(sampler)
    sampler.start = 5
    assert list(sampler) == whole[5:]
    assert len(sampler) == 23  # the trainer counts whole epochs
    sampler.stop = 20
    assert list(sampler) == whole[5:20]
    sampler.count = 25
    following = ResumableSampler(DATA, seed=3)
    following.set_epoch(1)
    assert list(sampler) == whole[5:20] + list(following)[:10]
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_unshuffled():
    assert _indices(shuffle=False) == list(range(23))
