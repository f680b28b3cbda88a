import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvlp.metrics.embeddings import EmbeddingStore
from medvlp.metrics.retrieval import in_batch_accuracy, recall_at_k
from medvlp.metrics.zero_shot import auroc_per_class, prompt_embeddings, zero_shot_probability


def random(rows, dim=8, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def loop_recall(queries, keys, k, groups=None):
    """One query at a time, in float64."""
    queries, keys = queries.double().numpy(), keys.double().numpy()
    groups = list(range(len(queries))) if groups is None else groups.tolist()
    hits = dict.fromkeys(k, 0)
    for i, query in enumerate(queries):
        cosines = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys]
        best = max(c for c, g in zip(cosines, groups, strict=True) if g == groups[i])
        others = [c for c, g in zip(cosines, groups, strict=True) if g != groups[i]]
        rank = 1 + sum(c > best + 1e-6 for c in others) + 0.5 * sum(abs(c - best) <= 1e-6 for c in others)
        for cut in k:
            hits[cut] += rank <= cut
    return {cut: hits[cut] / len(queries) for cut in k}


@pytest.mark.parametrize("rows", [1, 2, 33, 100])
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_recall_is_the_loop(rows, noise):
    keys = random(rows)
    queries = keys + noise * random(rows, seed=1)
    k = (1, 2, 5, 10)
    for groups in (None, torch.arange(rows) // 3, torch.arange(rows) % 5):
        got = recall_at_k(queries, keys, k, groups)
        assert got == pytest.approx(loop_recall(queries, keys, k, groups))
        assert recall_at_k(queries, keys, k, groups, chunk=7) == got


def test_recall_with_exact_ties():
    keys = torch.eye(4)[[0, 0, 0, 1, 2, 2]]
    got = recall_at_k(keys, keys, (1, 2, 3))
    assert got == pytest.approx({1: 1 / 6, 2: 1.0, 3: 1.0})  # ranks 2, 2, 2, 1, 1.5, 1.5
    assert got == pytest.approx(loop_recall(keys, keys, (1, 2, 3)))
    assert recall_at_k(keys, keys, (1,), torch.tensor([0, 0, 0, 1, 2, 2])) == {1: 1.0}


@pytest.mark.parametrize("rows", [2, 5, 37, 100])
@pytest.mark.parametrize("dim", [3, 128, 129])
def test_a_collapsed_model_finds_nothing(rows, dim):
    for seed in range(5):
        keys = random(1, dim, seed).expand(rows, dim).clone()
        queries = random(rows, dim, seed + 50)
        half = rows // 2
        assert recall_at_k(queries, keys, (1, half, rows)) == {1: 0.0, half: 0.0, rows: 1.0}
        assert recall_at_k(keys, keys, (1,)) == {1: 0.0}


def test_recall_without_queries_is_nan():
    assert math.isnan(recall_at_k(torch.zeros(0, 4), torch.zeros(0, 4), (1,))[1])


def test_in_batch_accuracy_is_the_loop():
    image, text = random(20), random(20) + random(20, seed=2)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1).numpy()
    for k, value in in_batch_accuracy(image, text, (1, 3, 5)).items():
        hits = [[i in np.argsort(-side[i])[:k] for i in range(20)] for side in (cosines, cosines.T)]
        assert float(value) == pytest.approx(100 * np.mean(hits))
    assert float(in_batch_accuracy(image, image)[1]) == 100


def test_auroc_is_sklearns_and_unknown_labels_do_not_count():
    rng = np.random.default_rng(0)
    scores = rng.random((200, 4)).round(2)  # with ties
    labels = rng.integers(0, 2, (200, 4)).astype(float)
    labels[rng.random((200, 4)) < 0.2] = np.nan
    labels[rng.random((200, 4)) < 0.2] = -1
    got = auroc_per_class(torch.tensor(scores), torch.tensor(labels))
    for c in range(4):
        known = np.isin(labels[:, c], (0, 1))
        assert float(got[c]) == pytest.approx(roc_auc_score(labels[known, c], scores[known, c]), abs=1e-6)


def test_auroc_of_a_class_without_both_sides_is_nan():
    labels = torch.tensor([[1.0, 0, torch.nan, 1], [1, 0, torch.nan, 0], [1, -1, torch.nan, torch.nan]])
    assert auroc_per_class(torch.rand(3, 4), labels).isnan().tolist() == [True, True, True, False]


def test_zero_shot_probability_is_a_softmax_over_both_prompts():
    images, positive, negative = random(6), random(3, seed=1), random(3, seed=2)
    cosine = torch.nn.functional.cosine_similarity
    p, n = (cosine(images[:, None], side[None], dim=-1) for side in (positive, negative))
    torch.testing.assert_close(zero_shot_probability(images, positive, negative), p.exp() / (p.exp() + n.exp()))
    assert (zero_shot_probability(positive, positive, negative).diag() > 0.5).all()


def test_prompt_ensembles_are_means_of_directions():
    prompts = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    torch.testing.assert_close(prompt_embeddings(prompts), torch.tensor([0.5, 0.5]).sqrt())


def test_store_keeps_each_row_once_in_order():
    everything = random(7)
    store = EmbeddingStore()
    for rows in ([4, 1], [0, 6], [5, 4], [2, 3], [0]):  # 4 and 0 come twice, as a distributed sampler repeats them
        index = torch.tensor(rows)
        part = everything[index]
        store.update(part, -part, index[:, None].float(), index // 2, index)
    result = store.compute()
    assert result["index"].tolist() == list(range(7))
    torch.testing.assert_close(result["image"], everything)
    torch.testing.assert_close(result["text"], -everything)
    assert result["label"][:, 0].tolist() == list(range(7))
    assert result["group"].tolist() == [0, 0, 1, 1, 2, 2, 3]
    store.reset()
    store.update(everything[:2], everything[:2], torch.zeros(2, 0), torch.arange(2), torch.arange(2))
    assert len(store.compute()["image"]) == 2
    assert store.compute()["label"].shape == (2, 0)


def test_a_single_pair_stays_a_row():
    store = EmbeddingStore()
    store.update(random(1), random(1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), torch.zeros(1).long())
    found = store.compute()
    assert [found[name].shape[0] for name in ("image", "text", "label", "group", "index")] == [1] * 5
    assert recall_at_k(found["image"], found["text"], (1,), found["group"]) == {1: 1.0}


def test_nan_scores_have_no_auroc():
    scores = torch.tensor([[0.1, torch.nan], [0.9, 0.2]])
    assert auroc_per_class(scores, torch.tensor([[0.0, 0], [1, 1]])).isnan().tolist() == [False, True]


def test_store_keeps_no_graph_and_float32():
    store = EmbeddingStore()
    image = random(2).bfloat16().requires_grad_()
    store.update(image, image, torch.zeros(2, 1), torch.arange(2), torch.arange(2))
    assert store.compute()["image"].dtype == torch.float32
    assert not store.compute()["image"].requires_grad
