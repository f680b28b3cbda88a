import math

import helpers
import pytest
import torch
from medvlp_baselines.gloria import local
from medvlp_baselines.gloria.losses import (
    class_scores,
    global_loss,
    global_similarity,
    local_loss,
    local_similarity,
    two_way_cross_entropy,
    word_attention,
    word_features,
    zero_shot_mask,
    zero_shot_similarity,
)
from torch.utils._python_dispatch import TorchDispatchMode

from medvlp.errors import ConfigError
from medvlp.losses.tokens import entries
from medvlp.text import Collate

LENGTHS = (6, 1, 4, 3)


def example(lengths=LENGTHS, images=4, dim=5, side=(3, 2), width=7, seed=0, dtype=torch.float64):
    """Regions, words with garbage in the padding, and the mask."""
    g = torch.Generator().manual_seed(seed)
    regions = torch.randn(images, dim, *side, generator=g, dtype=dtype)
    words = torch.randn(len(lengths), width, dim, generator=g, dtype=dtype)
    return regions, words, torch.arange(width) < torch.tensor(lengths)[:, None]


def loop(regions, words, mask, temp1=4.0, temp2=5.0, agg="sum", word_softmax=True, rescale=False):
    """One image and one report at a time, as the equations stand."""
    rows = []
    for image in regions.flatten(2):
        row = []
        for report, inside in zip(words, mask, strict=True):
            own = report[inside]
            dots = image.T @ own.T
            alpha = dots.softmax(1) if word_softmax else dots
            beta = (temp1 * alpha).softmax(0)
            cosines = torch.stack(
                [
                    (word @ (image @ beta[:, i])) / (word.norm() * (image @ beta[:, i]).norm()).clamp_min(1e-8)
                    for i, word in enumerate(own)
                ]
            )
            terms = (temp2 * cosines).exp()
            score = {"sum": terms.sum, "mean": terms.mean, "max": terms.max}[agg]().log()
            row.append(score / temp2 if rescale else score)
        rows.append(torch.stack(row))
    return torch.stack(rows)


VARIANTS = [
    {},
    {"agg": "mean"},
    {"agg": "max"},
    {"word_softmax": False},
    {"rescale": True, "temp1": 1.5, "temp2": 7.0},
]


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("options", VARIANTS)
def test_scores_and_gradients_are_the_loops(options, chunk):
    weights = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = []
    for function, extra in ((loop, {}), (local_similarity, {"chunk": chunk})):
        regions, words, mask = example()
        regions.requires_grad_()
        words.requires_grad_()
        scores = function(regions, words, mask, **options, **extra)
        (scores * weights).sum().backward()
        found.append((scores.detach(), regions.grad, words.grad))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_loss_of_the_loop():
    regions, words, mask = example()
    scores = 10 * loop(regions, words, mask)
    rows = torch.stack([-scores[i].log_softmax(0)[i] for i in range(4)]).mean()
    columns = torch.stack([-scores[:, i].log_softmax(0)[i] for i in range(4)]).mean()
    torch.testing.assert_close(local_loss(regions, words, mask), rows + columns)


def test_reports_and_images_need_not_be_as_many():
    regions, words, mask = example(images=2)
    torch.testing.assert_close(local_similarity(regions, words, mask), loop(regions, words, mask))
    as_list = regions.flatten(2).mT
    torch.testing.assert_close(local_similarity(as_list, words, mask), loop(regions, words, mask))


def test_attention_is_kept_or_computed_anew(monkeypatch):
    found = []
    for limit in (2**29, 0):
        monkeypatch.setattr(local, "_KEEP_BYTES", limit)
        monkeypatch.setattr(local, "_CHUNK_BYTES", {"cpu": 2**29 if limit else 700})
        regions, words, mask = example()
        regions.requires_grad_()
        words.requires_grad_()
        loss = local_loss(regions, words, mask)
        loss.backward()
        found.append((loss.detach(), regions.grad, words.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


class Largest(TorchDispatchMode):
    """The most values that any tensor of a computation has."""

    most = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, torch.Tensor):
                self.most = max(self.most, part.numel())
        return result


@pytest.mark.parametrize("chunk", [None, 3])
def test_reading_the_lengths_changes_nothing(chunk):
    found = []
    for trim in (True, False):
        regions, words, mask = example((3, 1, 0, 7, 2))
        regions = regions.flatten(2).mT.contiguous().requires_grad_()
        words.requires_grad_()
        cosine = local.local_cosine(regions, words, mask, 4.0, True, 1e-8, chunk, trim)
        cosine.square().sum().backward()
        found.append((cosine.detach(), regions.grad, words.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert float(found[0][0].masked_fill(mask, 0).abs().max()) == 0


def test_no_tensor_of_contexts_is_formed():
    batch, dim, regions, width = 6, 64, 16, 16
    image, words, mask = example((width,) * batch, batch, dim, (4, 4), width)
    image.requires_grad_()
    words.requires_grad_()
    with Largest() as whole:
        local_loss(image, words, mask).backward()
    assert whole.most == batch * batch * regions * width  # contexts would be batch · batch · width · dim
    with Largest() as part:
        local_loss(image, words, mask, chunk=1).backward()
    assert part.most == image.numel()


def test_padding_costs_nothing():
    image, words, mask = example((40, 2, 2, 2, 2, 2), 6, 4, (6, 6), 40)
    with Largest() as found:
        local_similarity(image, words, mask, chunk=1)
    assert found.most == 6 * 36 * 40
    with Largest() as found:
        local_similarity(image, words[1:], mask[1:], chunk=5)
    assert found.most < 6 * 36 * 40


def test_padding_has_no_influence():
    regions, words, mask = example()
    other = torch.where(mask[..., None], words, 1e4 * words.flip(0))
    torch.testing.assert_close(local_similarity(regions, other, mask), local_similarity(regions, words, mask))
    wider = torch.cat([words, words], 1), torch.cat([mask, torch.zeros_like(mask)], 1)
    torch.testing.assert_close(local_similarity(regions, *wider), local_similarity(regions, words, mask))


def test_equal_scores_give_four_logarithms():
    for batch in (2, 5):
        same = torch.ones(batch, 8)
        mask = torch.ones(batch, 3)
        total = local_loss(torch.ones(batch, 8, 2, 2), torch.ones(batch, 3, 8), mask) + global_loss(same, same)
        assert float(total) == pytest.approx(4 * math.log(batch), rel=1e-6)


def test_perfect_match_scores_temp2_and_the_logarithm_of_the_words():
    vector = torch.randn(6, dtype=torch.float64)
    score = local_similarity(vector.expand(1, 4, 6), vector.expand(1, 5, 6), torch.ones(1, 5))
    assert float(score) == pytest.approx(5 + math.log(5), rel=1e-9)


def test_batch_of_one_is_zero():
    regions, words, mask = example((4,), images=1)
    regions.requires_grad_()
    loss = local_loss(regions, words, mask)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(regions.grad.abs().max()) == 0


def test_reports_without_words_and_images_without_signal_stay_finite():
    regions, words, mask = example((3, 1, 0, 2))
    regions[1] = 0
    words[3] = 0
    regions.requires_grad_()
    words.requires_grad_()
    scores = local_similarity(regions, words, mask)
    assert scores[:, 2].tolist() == [0, 0, 0, 0]
    local_loss(regions, words, mask).backward()
    assert torch.isfinite(scores).all()
    assert torch.isfinite(regions.grad).all()
    assert torch.isfinite(words.grad).all()
    assert float(words.grad[2].abs().max()) == 0


def test_float32_and_autocast_agree_with_float64():
    regions, words, mask = example((30, 12, 25, 7), dim=64, side=(9, 9), width=33)
    exact = local_similarity(regions, words, mask)
    regions, words = regions.float().requires_grad_(), words.float().requires_grad_()
    plain = local_similarity(regions, words, mask)
    torch.testing.assert_close(plain.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = local_similarity(regions, words, mask)
        torch.autograd.grad(cast.sum(), regions, retain_graph=True)  # a backward pass inside autocast is no excuse
        inside = torch.autograd.grad(local_loss(regions, words, mask), regions)[0]
    assert torch.equal(cast, plain)
    assert torch.equal(inside, torch.autograd.grad(local_loss(regions, words, mask), regions)[0])
    half = local_similarity(regions.bfloat16(), words.bfloat16(), mask)
    assert half.dtype == torch.float32


def test_word_attention_is_the_pairs_own():
    regions, words, mask = example()
    attention = word_attention(regions, words, mask)
    for i, length in enumerate(LENGTHS):
        dots = regions[i].flatten(1).T @ words[i, :length].T
        torch.testing.assert_close(attention[i, :length], (4 * dots.softmax(1)).softmax(0).T)
        assert float(attention[i, length:].abs().sum()) == 0


def test_global_loss_is_the_loop():
    g = torch.Generator().manual_seed(1)
    image, text = (torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(2))
    scores = torch.stack([torch.stack([10 * torch.cosine_similarity(v, t, dim=0) for t in text]) for v in image])
    wanted = -(scores.log_softmax(1).diagonal().mean() + scores.log_softmax(0).diagonal().mean())
    torch.testing.assert_close(global_loss(image, text), wanted)
    assert torch.isfinite(global_similarity(torch.zeros(2, 3), torch.zeros(2, 3))).all()


def test_words_of_a_tokenized_batch():
    collate = Collate(helpers.tokenizer(60), max_length=40)
    texts = ["small left effusion", "pneumothorax", "", "no rib fracture is seen now"]
    batch = collate.tokenize(texts)
    assert batch["input_ids"].shape[1] > 9  # pieces, not words
    hidden = torch.randn(4, *batch["input_ids"].shape, 3, dtype=torch.float64)
    found = word_features(hidden, batch["word_groups"], batch["attention_mask"])
    words = [len(text.split()) for text in texts]
    assert found.entries.words.tolist() == words
    assert found.entries.count.tolist() == [count + 2 for count in words]
    assert found.mask.sum(1).tolist() == [count + 1 for count in words]
    assert zero_shot_mask(found.entries).sum(1).tolist() == words
    for i, text in enumerate(texts):
        rows = [torch.zeros(3, dtype=torch.float64) for _ in range(batch["input_ids"].shape[1])]
        groups, place, previous = batch["word_groups"][i].tolist(), -1, None
        for piece, group in enumerate(groups[: int(batch["attention_mask"][i].sum())]):
            if group < 0 or group != previous:
                place += 1
            rows[place] = rows[place] + hidden[:, i, piece].sum(0)
            previous = group if group >= 0 else None
        assert place == len(text.split()) + 1
        torch.testing.assert_close(found.words[i], torch.stack(rows))
        torch.testing.assert_close(found.sentence[i], torch.stack(rows).mean(0))
    mean = word_features(hidden, batch["word_groups"], batch["attention_mask"], "mean")
    torch.testing.assert_close(mean.words * 4, found.words)
    assert word_features(hidden.bfloat16(), batch["word_groups"], batch["attention_mask"]).words.dtype == torch.float32


def test_merging_many_layers_at_once_and_padding_on_the_left():
    groups = torch.tensor([[-1, -1, -1, 0, 0, 1, -1], [-1, 0, 1, 1, 1, 2, -1]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    hidden = torch.randn(3, 2, 7, 2, requires_grad=True)
    found = entries(groups, mask)
    merged = found.merge(hidden)
    assert found.count.tolist() == [4, 5]
    wanted = [hidden[:, 0, 2], hidden[:, 0, 3:5].sum(1), hidden[:, 0, 5], hidden[:, 0, 6]]
    torch.testing.assert_close(merged[:, 0, :4], torch.stack(wanted, 1))
    assert float(merged[:, 0, 4:].detach().abs().sum()) == 0
    merged.sum().backward()
    assert hidden.grad[:, 0, :2].abs().sum() == 0
    assert (hidden.grad[:, 1] == 1).all()


def test_zero_shot():
    regions, words, mask = example()
    image, sentence = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    mask[:, 0] = False
    both, whole, part = zero_shot_similarity(regions, image, words, sentence, mask)
    torch.testing.assert_close(both, (whole + part) / 2)
    prompts = [0, 2, 3]  # the second one is [CLS] alone
    torch.testing.assert_close(part[:, prompts], loop(regions, words[prompts], mask[prompts], agg="max"))
    assert part[:, 1].tolist() == [0, 0, 0, 0]
    scores = class_scores(both.view(4, 2, 2))
    torch.testing.assert_close(scores.mean(0), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(scores.std(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert class_scores(both[:1].view(1, 2, 2)).tolist() == [both[0].view(2, 2).amax(1).tolist()]
    assert class_scores(torch.ones(3, 2, 2)).tolist() == [[0, 0]] * 3


def test_mistakes_are_named():
    regions, words, mask = example()
    with pytest.raises(ConfigError, match="chunk"):
        local_similarity(regions, words, mask, chunk=0)
    with pytest.raises(ConfigError, match="agg"):
        local_similarity(regions, words, mask, agg="median")
    with pytest.raises(ConfigError, match="shapes"):
        local_similarity(regions, words, mask[:, :-1])
    with pytest.raises(ConfigError, match="at least one"):
        local_similarity(regions, words[:0], mask[:0])
    with pytest.raises(ConfigError, match="regions must be"):
        local_similarity(regions[0, 0], words, mask)
    with pytest.raises(ConfigError, match="one report per image"):
        two_way_cross_entropy(torch.ones(2, 3))
    with pytest.raises(ConfigError, match="word_groups"):
        entries(torch.zeros(2, 3), torch.zeros(2, 4))
