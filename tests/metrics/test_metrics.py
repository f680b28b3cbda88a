import numpy as np
import pytest
import torch

from medvlp.metrics.retrieval import in_batch_accuracy
from medvlp.scoring.prompts import prompt_embeddings, zero_shot_probability


def random(rows, dim=8, seed=0):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_in_batch_accuracy_is_the_loop():
    image, text = random(20), random(20) + random(20, seed=2)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1).numpy()
    for k, value in in_batch_accuracy(image, text, (1, 3, 5)).items():
        hits = [[i in np.argsort(-side[i])[:k] for i in range(20)] for side in (cosines, cosines.T)]
        assert float(value) == pytest.approx(100 * np.mean(hits))
    assert float(in_batch_accuracy(image, image)[1]) == 100


def test_zero_shot_probability_is_a_softmax_over_both_prompts():
    images, positive, negative = random(6), random(3, seed=1), random(3, seed=2)
    cosine = torch.nn.functional.cosine_similarity
    p, n = (cosine(images[:, None], side[None], dim=-1) for side in (positive, negative))
    torch.testing.assert_close(zero_shot_probability(images, positive, negative), p.exp() / (p.exp() + n.exp()))
    assert (zero_shot_probability(positive, positive, negative).diag() > 0.5).all()


def test_prompt_ensembles_are_means_of_directions():
    prompts = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    torch.testing.assert_close(prompt_embeddings(prompts), torch.tensor([0.5, 0.5]).sqrt())
