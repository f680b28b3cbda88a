import socket
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medvlp.errors import ConfigError, DataError
from medvlp.metrics.samples import Ragged, Samples, SampleStore

sys.path.insert(0, str(Path(__file__).parent))
import gloo_workers


def equal(a: Samples, b: Samples) -> bool:
    def same(x, y):
        return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(-7), y.nan_to_num(-7))

    assert list(a.columns) == list(b.columns)
    assert list(a.ragged) == list(b.ragged)
    return (
        same(a.index, b.index)
        and all(same(a.columns[n], b.columns[n]) for n in a.columns)
        and all(same(a.ragged[n].values, b.ragged[n].values) for n in a.ragged)
        and all(same(a.ragged[n].offsets, b.ragged[n].offsets) for n in a.ragged)
    )


def test_two_gloo_processes_equal_one_on_an_odd_number(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(gloo_workers.work, (str(tmp_path), port), nprocs=gloo_workers.WORLD)
    alone = gloo_workers.fill(gloo_workers.make(), list(range(gloo_workers.SIZE)), batch=2).compute()
    assert alone.index.tolist() == list(range(gloo_workers.SIZE))
    assert alone.ragged["boxes"].values.shape == (1 + 3 + 5, 4)
    measures = gloo_workers.measured(list(range(gloo_workers.SIZE)), batch=2)
    assert 0 < measures["map_coco"] < 1
    for rank in range(gloo_workers.WORLD):
        made = torch.load(tmp_path / f"samples{rank}.pt", weights_only=True)
        ragged = {n: Ragged(made[f"{n}.values"], made[f"{n}.offsets"]) for n in ("boxes", "tags")}
        assert equal(Samples(made["index"], {n: made[n] for n in ("score", "label")}, ragged), alone)
        assert made["measured"] == pytest.approx(measures, nan_ok=True)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_store_keeps_each_row_once_in_order():
    store = gloo_workers.fill(gloo_workers.make(), [4, 1, 0, 6, 5, 4, 2, 3, 0], batch=2)
    found = store.compute()
    assert found.index.tolist() == list(range(7))
    for row in range(7):
        assert torch.equal(found["score"][row], gloo_workers.sample(row)["score"])
        assert torch.equal(found.ragged["boxes"][row], gloo_workers.sample(row)["boxes"])
    assert found.ragged["tags"].owner.tolist() == [1, 3, 3, 3, 5, 5, 5, 5, 5]
    store.reset()
    assert len(store.compute()) == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_nothing_is_an_empty_table():
    empty = SampleStore(["score"], ["boxes"]).compute()
    assert (len(empty), empty["score"].shape, len(empty.ragged["boxes"])) == (0, (0,), 0)
    store = SampleStore(["score"])
    store.update(torch.zeros(0, dtype=torch.long), score=torch.zeros(0, 3))
    assert len(store.compute()) == 0


def test_a_single_sample_stays_a_row():
    found = gloo_workers.fill(gloo_workers.make(), [1], batch=1).compute()
    assert (found.index.shape, found["score"].shape, found["label"].shape) == ((1,), (1, 3), (1,))
    assert found.ragged["tags"].values.shape == (1,)
    assert found.with_columns(score=torch.ones(1))["score"].tolist() == [1]


def test_store_keeps_no_graph_and_no_half_precision():
    store = SampleStore(["a", "b"])
    store.update(torch.arange(2), a=torch.zeros(2).bfloat16().requires_grad_(), b=torch.zeros(2).double())
    found = store.compute()
    assert not found["a"].requires_grad
    assert (found["a"].dtype, found["b"].dtype) == (torch.float32, torch.float64)


def test_wrong_columns_are_named():
    with pytest.raises(ConfigError, match="index"):
        SampleStore(["index"])
    with pytest.raises(ConfigError, match="differ"):
        SampleStore(["a"], ["a"])
    store = SampleStore(["a"], ["boxes"])
    with pytest.raises(ConfigError, match="'boxes'"):
        store.update(torch.arange(2), a=torch.zeros(2))
    with pytest.raises(ConfigError, match="'a' has 3"):
        store.update(torch.arange(2), a=torch.zeros(3), boxes=[torch.zeros(0, 4)] * 2)
    with pytest.raises(DataError, match="'b'"):
        Samples(torch.arange(1), {"a": torch.zeros(1)}, {})["b"]


def table(n: int = 6) -> Samples:
    g = torch.Generator().manual_seed(n)
    score = torch.randn(n, 3, generator=g)
    if n:
        score[0, 1], score[-1, 2] = torch.nan, torch.inf
    counts = [(3 * i) % 4 for i in range(n)]
    boxes = [torch.rand(count, 4, generator=g) for count in counts] or [torch.zeros(0, 4)]
    offsets = torch.tensor([0, *np.cumsum(counts)])
    return Samples(
        torch.arange(n) * 2,
        {
            "score": score,
            "exact": torch.rand(n, generator=g, dtype=torch.float64),
            "label": torch.rand(n, 2, generator=g) > 0.5,
            "flag": torch.rand(n, generator=g) > 0.5,
            "class": torch.arange(n),
            "byte": torch.arange(n, dtype=torch.uint8)[:, None].expand(n, 2).clone(),
            "map": torch.rand(n, 2, 3, generator=g),
            "none": torch.zeros(n, 0),
        },
        {
            "boxes": Ragged(torch.cat(boxes), offsets),
            "rank": Ragged(torch.arange(int(offsets[-1])), offsets),
            "kind": Ragged(torch.rand(int(offsets[-1]), generator=g) > 0.5, offsets),
            "empty": Ragged(torch.zeros(0, 4), torch.zeros(n + 1, dtype=torch.long)),
        },
    )


@pytest.mark.parametrize("n", [0, 1, 6])
def test_parquet_gives_back_equal_tensors(n, tmp_path):
    samples = table(n)
    frame = samples.to_frame([f"image{i}" for i in range(n)], [f"patient{i // 2}" for i in range(n)])
    assert equal(Samples.from_frame(frame), samples)
    frame.to_parquet(tmp_path / "predictions.parquet")
    read = pd.read_parquet(tmp_path / "predictions.parquet")
    assert equal(Samples.from_frame(read), samples)
    assert list(read["id"]) == [f"image{i}" for i in range(n)]
    assert list(read["group"]) == [f"patient{i // 2}" for i in range(n)]


def test_frames_without_a_layout_and_with_wrong_ids_are_refused():
    samples = table()
    with pytest.raises(ConfigError, match="6 samples"):
        samples.to_frame(["a"], ["b"])
    frame = samples.to_frame(list("abcdef"), list("abcdef"))
    frame.attrs.clear()
    with pytest.raises(DataError, match="layout of its columns"):
        Samples.from_frame(frame)


def test_select_by_flags_and_by_place():
    samples = table()
    keep = torch.tensor([True, False, True, True, False, False])
    assert equal(samples.select(keep), samples.select(torch.tensor([0, 2, 3])))
    turned = samples.select(torch.tensor([3, 1]))
    assert turned.index.tolist() == [6, 2]
    assert torch.equal(turned.ragged["boxes"][0], samples.ragged["boxes"][3])
    assert torch.equal(turned.ragged["boxes"][1], samples.ragged["boxes"][1])
    assert len(samples.select(torch.zeros(6, dtype=torch.bool))) == 0
    assert equal(samples.to("cpu"), samples)


def test_ragged_from_parts():
    made = Ragged.of([torch.zeros(2, 4), torch.zeros(0, 4), torch.ones(1, 4)])
    assert made.offsets.tolist() == [0, 2, 2, 3]
    assert made.counts.tolist() == [2, 0, 1]
    assert made.owner.tolist() == [0, 0, 2]
