import math

import pytest
import torch

from medvlp.losses.contrastive import image_text_contrast, info_nce


def loop(queries, keys, temperature, offset=0):
    """G2D Eq. 1 as it is printed, one query at a time."""
    total = 0.0
    for i in range(len(queries)):
        terms = []
        for key in keys:
            cosine = (queries[i] * key).sum() / (queries[i].norm() * key.norm())
            terms.append((cosine / temperature).exp())
        total = total - (terms[i + offset] / sum(terms)).log()
    return total / len(queries)


def pair(count=6, dim=5, keys=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, dim, generator=g, dtype=torch.float64),
        torch.randn(keys or count, dim, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
@pytest.mark.parametrize(("keys", "offset"), [(6, 0), (18, 0), (18, 6), (18, 12)])
def test_info_nce_is_the_loop(temperature, keys, offset):
    q, k = pair(keys=keys)
    torch.testing.assert_close(
        info_nce(q, k, temperature, offset), loop(q, k, temperature, offset), rtol=1e-12, atol=1e-12
    )


def test_gradients_are_the_loops():
    grads = []
    for function in (info_nce, loop):
        q, k = (x.clone().requires_grad_() for x in pair(keys=12))
        function(q, k, 0.07, 6).backward()
        grads.append((q.grad, k.grad))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def test_temperature_may_be_learned():
    q, k = pair()
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    image_text_contrast(q, k, temperature=temperature).backward()
    step = 1e-6
    up, down = (image_text_contrast(q, k, temperature=0.1 + s * step) for s in (1, -1))
    assert float(temperature.grad) == pytest.approx(float(up - down) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "factor"), [(1.0, 1.0, 2.0), (0.75, 0.25, 1.0), (1.0, 0.0, 1.0), (0.5, 0.5, 1.0)]
)
def test_equal_cosines_give_the_logarithm_of_the_batch(first, second, factor):
    for batch in (2, 7, 64):
        same = torch.ones(batch, 9)
        value = image_text_contrast(same, same, temperature=0.07, image_to_text=first, text_to_image=second)
        assert float(value) == pytest.approx(factor * math.log(batch), rel=1e-6)


def test_directions_are_weighted_and_not_mixed_up():
    image, text = pair()
    value = image_text_contrast(image, text, temperature=0.1, image_to_text=0.75, text_to_image=0.25)
    torch.testing.assert_close(value, 0.75 * loop(image, text, 0.1) + 0.25 * loop(text, image, 0.1))
    assert abs(loop(image, text, 0.1) - loop(text, image, 0.1)) > 1e-3


def test_ranks_with_gathered_keys_average_to_the_whole_batch():
    image, text = pair(count=12)
    whole = image_text_contrast(image, text, temperature=0.07)
    parts = [
        image_text_contrast(
            image[at : at + 4], text[at : at + 4], temperature=0.07, all_image=image, all_text=text, offset=at
        )
        for at in (0, 4, 8)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_scale_of_the_embeddings_does_not_matter():
    image, text = pair()
    a = image_text_contrast(image, text, temperature=0.07)
    torch.testing.assert_close(image_text_contrast(40 * image, 0.01 * text, temperature=0.07), a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    image, text = (x.to(dtype) for x in pair(count=16, dim=64))
    exact = image_text_contrast(image.double(), text.double(), temperature=0.07)
    value = image_text_contrast(image, text, temperature=0.07)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=1e-5)


def test_autocast_does_not_reach_the_logits():
    image, text = (x.float() for x in pair(count=16, dim=64))
    plain = image_text_contrast(image, text, temperature=0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = image_text_contrast(image, text, temperature=0.07)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
