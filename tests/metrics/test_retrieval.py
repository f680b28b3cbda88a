import math

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalPrecision

from medvlp.errors import ConfigError
from medvlp.metrics.retrieval import (
    PRECISIONS,
    RECALLS,
    precision_statistics,
    recall_columns,
    recall_statistics,
    retrieval_measures,
)
from medvlp.metrics.samples import Samples


def embeddings(n=60, dim=8, noise=0.7, seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, dim, generator=g)
    return image, image + noise * torch.randn(n, dim, generator=g)


def table(groups=None, classes=None):
    image, text = embeddings()
    columns = recall_columns(image, text, groups)
    if classes is not None:
        for way, queries, keys in (("i2t", image, text), ("t2i", text, image), ("i2i", image, image)):
            itself = torch.arange(60) if way == "i2i" else None
            values = precision_statistics(queries, keys, classes, classes, own_key=itself)
            columns[f"precision_{way}"], columns[f"chance_precision_{way}"] = values
    return Samples(torch.arange(60), columns)


def loop_recall(queries, keys, k, groups):
    """One query at a time, in float64."""
    cosines = torch.nn.functional.cosine_similarity(queries.double()[:, None], keys.double()[None], dim=-1)
    ranks = []
    for i, row in enumerate(cosines):
        best = row[groups == groups[i]].max()
        ranks.append(1 + int((row[groups != groups[i]] > best).sum()))
    return {cut: float(np.mean(np.array(ranks) <= cut)) for cut in k}


@pytest.mark.parametrize("noise", [0.5, 2.0])
@pytest.mark.parametrize("groups", [torch.arange(60), torch.arange(60) // 3, torch.arange(60) % 5])
def test_recall_is_the_loop(noise, groups):
    image, text = embeddings(noise=noise)
    found = retrieval_measures(Samples(torch.arange(60), recall_columns(image, text, groups)))
    for way, queries, keys in (("i2t", image, text), ("t2i", text, image)):
        for k, value in loop_recall(queries, keys, RECALLS, groups).items():
            assert float(found[f"recall@{k}/{way}"]) == pytest.approx(value)
    chunked, _ = recall_statistics(image, text, RECALLS, groups, groups, chunk=7)
    assert torch.equal(chunked, recall_statistics(image, text, RECALLS, groups, groups)[0])


def test_ties_of_recall_are_shared_without_a_draw():
    keys = torch.eye(4)[[0, 0, 0, 1, 2, 2]]
    values, _ = recall_statistics(keys, keys, (1, 2, 3))
    want = [[1 / 3, 2 / 3, 1]] * 3 + [[1, 1, 1]] + [[1 / 2, 1, 1]] * 2
    torch.testing.assert_close(values, torch.tensor(want))
    same = torch.tensor([0, 0, 0, 1, 2, 2])
    assert recall_statistics(keys, keys, (1,), same, same)[0].tolist() == [[1.0]] * 6


def test_precision_is_torchmetrics():
    image, text = embeddings(40)
    classes = torch.arange(40) % 4
    cuts = (1, 5, 10, 40)
    found, chance = precision_statistics(image, text, classes, classes, cuts, chunk=7)
    # torchmetrics takes items with scores up to 0 for irrelevant ones; the order is what counts here.
    similarity = 2 + torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    queries = torch.arange(40)[:, None].expand(-1, 40)
    for place, k in enumerate(cuts):
        metric = RetrievalPrecision(top_k=k)
        want = metric(similarity.flatten(), (classes[:, None] == classes[None]).flatten(), queries.flatten())
        assert float(found[:, place].mean()) == pytest.approx(float(want), abs=1e-6)
    assert torch.allclose(chance, torch.tensor(0.25))
    assert torch.equal(found, precision_statistics(image, text, classes, classes, cuts)[0])


def test_a_query_does_not_find_itself():
    image, _ = embeddings(20)
    classes = torch.arange(20) % 4
    found, chance = precision_statistics(image, image, classes, classes, (1, 5, 19, 20), torch.arange(20))
    cosine = torch.nn.functional.cosine_similarity(image[:, None], image[None], dim=-1).fill_diagonal_(-2)
    order = cosine.argsort(1, descending=True)
    relevant = (classes[order] == classes[:, None]).float()
    for place, k in enumerate((1, 5, 19)):
        torch.testing.assert_close(found[:, place], relevant[:, :k].mean(1))
    assert found[:, 3].isnan().all()  # 19 candidates only
    assert torch.allclose(chance, torch.tensor(4 / 19))


def test_ties_count_as_in_random_order():
    """Against the mean over many random orders."""
    keys = torch.eye(3)[[0, 0, 0, 0, 1, 1, 2]]
    queries = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
    key_groups, query_groups = torch.tensor([7, 7, 8, 8, 9, 9, 8]), torch.tensor([7, 8])
    recall, chance = recall_statistics(queries, keys, (1, 2, 3, 6), query_groups, key_groups)
    precision, _ = precision_statistics(queries, keys, query_groups, key_groups, (1, 2, 3, 6))
    rng = np.random.default_rng(0)
    cosine = torch.nn.functional.normalize(queries) @ keys.T
    for q in range(2):
        orders = [np.lexsort((rng.random(7), -cosine[q].numpy())) for _ in range(4000)]
        relevant = (key_groups == query_groups[q]).numpy()[np.array(orders)]
        shuffled = rng.permuted(relevant, axis=1)
        for place, k in enumerate((1, 2, 3, 6)):
            assert float(recall[q, place]) == pytest.approx(relevant[:, :k].any(1).mean(), abs=0.03)
            assert float(precision[q, place]) == pytest.approx(relevant[:, :k].mean(), abs=0.02)
            assert float(chance[q, place]) == pytest.approx(shuffled[:, :k].any(1).mean(), abs=0.03)


def test_collapsed_models_score_chance():
    one, classes = torch.ones(40, 4), torch.arange(40) % 5
    columns = recall_columns(one, one, torch.arange(40) // 2)
    values = precision_statistics(one, one, classes, classes, (5, 10))
    columns["precision_i2t"], columns["chance_precision_i2t"] = values
    found = retrieval_measures(Samples(torch.arange(40), columns), precisions=(5, 10))
    for name in [name for name in found if not name.startswith("chance")]:
        assert float(found[name]) == pytest.approx(float(found[f"chance/{name}"]), abs=1e-6), name
    assert float(found["chance/recall@1/i2t"]) == pytest.approx(2 / 40)
    assert float(found["chance/precision@5/i2t"]) == pytest.approx(0.2)


def test_weights_are_repetitions():
    samples = table(classes=torch.arange(60) % 5)
    weights = torch.randint(0, 3, (6, 60), generator=torch.Generator().manual_seed(0)).float()
    found = retrieval_measures(samples, weights)
    assert found["precision@100/i2t"].isnan().all()  # 60 items
    assert found["chance/precision@100/i2t"].isnan().all()
    for r, counts in enumerate(weights.long()):
        want = retrieval_measures(samples.select(torch.repeat_interleave(counts)))
        for name, value in want.items():
            assert float(found[name][r]) == pytest.approx(float(value), abs=1e-9, nan_ok=True), name


def test_no_samples_and_other_cuts():
    nothing = torch.zeros(0, 4)
    columns = recall_columns(nothing, nothing)
    classes = torch.zeros(0, dtype=torch.long)
    values = precision_statistics(nothing, nothing, classes, classes)
    columns["precision_i2t"], columns["chance_precision_i2t"] = values
    found = retrieval_measures(Samples(torch.zeros(0, dtype=torch.long), columns))
    assert len(found) == 2 * (2 * len(RECALLS) + len(PRECISIONS))
    assert all(math.isnan(value) for value in found.values())
    with pytest.raises(ConfigError, match="taken at 3"):
        retrieval_measures(table(), recalls=(1, 5))
