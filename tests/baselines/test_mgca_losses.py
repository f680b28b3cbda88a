import math

import pytest
import torch
import torch.nn.functional as F
from medvlp_baselines.mgca import losses as mgca
from medvlp_baselines.mgca import prototypes as proto

from medvlp.errors import ConfigError

TEXTS = (
    # word of each piece; −1 at both ends for [CLS] and [SEP]; the second fills the row
    (-1, 0, 0, 1, 2, 2, 2, -1),
    (-1, 0, 1, 1, 2, 3, 4, 4, 5, -1),
    (-1, -1),
    (-1, 0, -1),
)
LENGTH = 10


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts():
    groups, mask = torch.full((len(TEXTS), LENGTH), -1), torch.zeros(len(TEXTS), LENGTH, dtype=torch.int64)
    for i, row in enumerate(TEXTS):
        groups[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    attention = normal(len(TEXTS), 3, LENGTH, LENGTH).masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
    return normal(len(TEXTS), LENGTH, 4, seed=1), attention, groups, mask


def merged_one_by_one(hidden, attention, row, official):
    """Entries of one text as the code's loop makes them: a word is written when the next one begins."""
    paid = attention[:, 0].mean(0).tolist()
    pieces = [
        (group, hidden[p], paid[p + 1] if official else paid[p])
        for p, group in enumerate(row)
        if not official or p + 1 < LENGTH
    ]
    entries, word = [], None
    for group, state, share in pieces:
        if word is not None and group == word[0] and group >= 0:
            word = (group, word[1] + state, word[2] + share)
            continue
        if word is not None:
            entries.append(word)
        word = (group, state, share)
    if not official or len(row) < LENGTH:  # [SEP] ends the loop and is written; without it, the last word never is
        entries.append(word)
    return entries


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_merged_reports(variant):
    hidden, attention, groups, mask = texts()
    made = mgca.merge_report(hidden, attention, groups, mask, variant)
    assert made.words.shape == (4, LENGTH - 1, 4)
    for i, row in enumerate(TEXTS):
        entries = merged_one_by_one(hidden[i], attention[i], row, variant == "official")
        words = [e for e in entries[1:] if variant == "official" or e[0] >= 0]
        torch.testing.assert_close(made.report[i], hidden[i, 0])
        for k, (_, state, _) in enumerate(entries[1:]):
            torch.testing.assert_close(made.words[i, k], state)
        assert float(made.words[i, len(entries) - 1 :].abs().sum()) == 0
        wanted = torch.tensor([share for _, _, share in words], dtype=torch.float64)
        torch.testing.assert_close(made.attention[i, : len(words)], wanted)
        assert float(made.attention[i, len(words) :].abs().sum()) == 0
        assert made.padding[i].tolist() == [False] * len(words) + [True] * (LENGTH - 1 - len(words))


def test_merging_takes_the_mean_attention_too_and_gives_it_no_gradient():
    hidden, attention, groups, mask = texts()
    attention.requires_grad_()
    full = mgca.merge_report(hidden, attention, groups, mask)
    short = mgca.merge_report(hidden, attention[:, :, 0].mean(1), groups, mask)
    torch.testing.assert_close(full.attention, short.attention)
    assert not full.attention.requires_grad


def test_clipped_weights_are_torch_quantiles():
    weights = normal(6, 9).abs()
    weights[0, 5:], weights[1, :8], weights[2] = 0, 0, 0
    weights[3, ::2] = 0
    made = mgca.clip_weights(weights)
    for row, got in zip(weights, made, strict=True):
        there = row[row != 0]
        if not len(there):
            assert got.tolist() == [0] * 9
            continue
        clipped = there.clamp(torch.quantile(there, 0.1), torch.quantile(there, 0.9))
        torch.testing.assert_close(got[row != 0], clipped / clipped.sum())
        assert float(got[row == 0].abs().sum()) == 0


def tokens(batch=3, patches=6, words=5, dim=4):
    padding = torch.arange(words) >= torch.tensor([5, 2, 4])[:, None]
    attention = normal(batch, words, seed=3).abs().masked_fill(padding, 0)
    return normal(batch, patches, dim, seed=1), normal(batch, words, dim, seed=2), attention, padding


def cross_entropies(queries, contexts, weights, tau):
    """Both directions of one sample, token by token."""
    total = 0.0
    for k, weight in enumerate(weights):
        row = torch.stack([(queries[k] @ c) / tau for c in contexts])
        column = torch.stack([(q @ contexts[k]) / tau for q in queries])
        total = total - weight * (row.log_softmax(0)[k] + column.log_softmax(0)[k])
    return total


def official_one_by_one(patches, words, attention, padding, patch_attention=None):
    patch_term = word_term = 0.0
    for i in range(len(patches)):
        r, z = F.normalize(patches[i], dim=1), F.normalize(words[i], dim=1)
        o = torch.stack([F.normalize(((z_l @ r.T) / 0.1).softmax(0) @ r, dim=0) for z_l in z])
        u = torch.stack([((r_s @ z.T) / 0.1).masked_fill(padding[i], -torch.inf).softmax(0) @ z for r_s in r])
        if patch_attention is None:
            u, weights = F.normalize(u, dim=1), torch.full((len(r),), 1 / len(r), dtype=r.dtype)
        else:
            weights = mgca.clip_weights(patch_attention[i : i + 1])[0]
        patch_term = patch_term + cross_entropies(r, u, weights, 0.1) / 2
        word_term = word_term + cross_entropies(z, o, mgca.clip_weights(attention[i : i + 1])[0], 0.1) / 2
    return patch_term / len(patches), word_term / len(patches)


def paper_one_by_one(patches, words, attention, padding, look, seek, patch_attention=None):
    patch_term = word_term = 0.0
    for i in range(len(patches)):
        r, z = F.normalize(patches[i], dim=1), F.normalize(words[i][~padding[i]], dim=1)
        contexts = []
        for module, queries, keys in ((look, r, z), (seek, z, r)):
            q, k, v = (queries @ module.query.weight.T, keys @ module.key.weight.T, keys @ module.value.weight.T)
            alpha = (q @ k.T / math.sqrt(r.shape[1])).softmax(1)
            contexts.append(F.normalize(alpha @ v @ module.out.weight.T, dim=1))
        weights = torch.full((len(r),), 1 / len(r), dtype=r.dtype) if patch_attention is None else patch_attention[i]
        patch_term = patch_term + cross_entropies(r, contexts[0], weights, 0.07) / (2 * len(r))
        word_term = word_term + cross_entropies(z, contexts[1], attention[i][~padding[i]], 0.07) / (2 * len(z))
    return patch_term / len(patches) / 2, word_term / len(patches) / 2


@pytest.mark.parametrize("vit", [False, True])
@pytest.mark.parametrize("variant", ["official", "paper"])
def test_token_loss_is_the_loop(variant, vit):
    torch.manual_seed(0)
    modules = [mgca.CrossAttention(4).double() for _ in range(2)]
    patch_attention = normal(3, 6, seed=9).softmax(1) if vit else None
    found = []
    for vectorised in (False, True):
        patches, words, attention, padding = tokens()
        patches.requires_grad_()
        words.requires_grad_()
        for module in modules:
            module.zero_grad()
        if vectorised:
            options = {"patch_to_word": modules[0], "word_to_patch": modules[1]} if variant == "paper" else {}
            sides = mgca.token_loss(
                patches, words, attention, padding, patch_attention=patch_attention, variant=variant, **options
            )
        elif variant == "paper":
            sides = paper_one_by_one(patches, words, attention, padding, *modules, patch_attention)
        else:
            sides = official_one_by_one(patches, words, attention, padding, patch_attention)
        (sides[0] + 2 * sides[1]).backward()
        parameters = [p.grad for module in modules for p in module.parameters()] if variant == "paper" else []
        found.append([sides[0].detach(), sides[1].detach(), patches.grad, words.grad, *parameters])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_equal_tokens_give_logarithms():
    for size in (196, 361):
        patches, words = torch.ones(2, size, 8), torch.ones(2, 111, 8)
        attention = torch.zeros(2, 111)
        attention[:, :40] = 0.01
        padding = torch.arange(111).expand(2, -1) >= 41
        sides = mgca.token_loss(patches, words, attention, padding, variant="official")
        assert float(sides.word) == pytest.approx(math.log(111), rel=1e-5)
        assert float(sides.patch) == pytest.approx(math.log(size), rel=1e-5)


def test_official_padding_is_a_negative_among_words_and_the_papers_is_not():
    patches, words, attention, padding = tokens()
    other = torch.where(padding[..., None], normal(3, 5, 4, seed=8), words)
    modules = {"patch_to_word": mgca.CrossAttention(4).double(), "word_to_patch": mgca.CrossAttention(4).double()}
    for variant, options in (("official", {}), ("paper", modules)):
        one = mgca.token_loss(patches, words, attention, padding, variant=variant, **options)
        two = mgca.token_loss(patches, other, attention, padding, variant=variant, **options)
        torch.testing.assert_close(one.patch, two.patch)
        assert torch.equal(one.word, two.word) == (variant == "paper")


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_reports_without_words_stay_finite(variant):
    hidden, attention, groups, mask = texts()
    made = mgca.merge_report(hidden, attention, groups, mask, variant)
    words = made.words.clone().requires_grad_()
    options = {"patch_to_word": mgca.CrossAttention(4).double(), "word_to_patch": mgca.CrossAttention(4).double()}
    sides = mgca.token_loss(
        normal(4, 6, 4), words, made.attention, made.padding, variant=variant, **options if variant == "paper" else {}
    )
    (sides.patch + sides.word).backward()
    assert torch.isfinite(words.grad).all()
    if variant == "paper":
        assert float(words.grad[2].abs().max()) == 0  # [CLS] [SEP]


def sinkhorn_of_exponentials(scores, epsilon=0.05, iterations=3):
    """As the released code writes it."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q / q.sum(0, keepdim=True)).T


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_sinkhorn_is_that_of_exponentials(iterations):
    scores = normal(7, 11).tanh()
    codes = proto.sinkhorn(scores, iterations=iterations)
    torch.testing.assert_close(codes, sinkhorn_of_exponentials(scores, iterations=iterations))
    torch.testing.assert_close(codes.sum(1), torch.ones(7, dtype=torch.float64))


def test_sinkhorn_stays_finite():
    same = torch.ones(5, 8).half()
    prototypes = proto.normalise_prototypes_(torch.randn(500, 8))
    codes = proto.sinkhorn(proto.prototype_scores(same, prototypes))
    torch.testing.assert_close(codes, torch.full((5, 500), 1 / 500))
    assert torch.isfinite(proto.sinkhorn(1000 * torch.randn(5, 8))).all()
    assert torch.isfinite(proto.sinkhorn(torch.randn(1, 8))).all()


def test_sinkhorn_over_ranks_is_that_of_the_whole_batch(monkeypatch):
    scores = normal(8, 5)
    whole = proto.sinkhorn(scores)
    monkeypatch.setattr(proto.distributed, "all_gather", lambda x: scores)
    for rank in range(2):
        monkeypatch.setattr(proto.distributed, "rank", lambda rank=rank: rank)
        own = scores[4 * rank : 4 * rank + 4]
        torch.testing.assert_close(proto.sinkhorn(own, across_ranks=True), whole[4 * rank : 4 * rank + 4])
        assert not torch.allclose(proto.sinkhorn(own), whole[4 * rank : 4 * rank + 4])


def test_prototype_loss_is_the_loop():
    image, report = normal(6, 4).requires_grad_(), normal(6, 4, seed=1).requires_grad_()
    prototypes = proto.normalise_prototypes_(normal(9, 4, seed=2)).requires_grad_()
    total = 0.0
    scores = [F.normalize(e, dim=1) @ prototypes.T for e in (image, report)]
    codes = [sinkhorn_of_exponentials(s.detach()) for s in scores]
    for code, score in ((codes[0], scores[1]), (codes[1], scores[0])):
        for q, s in zip(code, score, strict=True):
            total = total - (q * (s.exp() ** 5 / (s.exp() ** 5).sum()).log()).sum() / 12
    made = proto.prototype_loss(image, report, prototypes)
    torch.testing.assert_close(made, total)
    leaves = (image, report, prototypes)
    for got, wanted in zip(torch.autograd.grad(made, leaves), torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(got, wanted)


def test_equal_prototypes_give_the_logarithm_of_their_number():
    prototypes = proto.normalise_prototypes_(torch.ones(500, 16))
    loss = proto.prototype_loss(torch.randn(4, 16), torch.randn(4, 16), prototypes)
    assert float(loss) == pytest.approx(math.log(500), rel=1e-5)


def test_autocast_does_not_reach_the_logits():
    patches, words, attention, padding = (t.float() if t.is_floating_point() else t for t in tokens())
    prototypes = proto.normalise_prototypes_(torch.randn(9, 4))

    def every_loss():
        sides = mgca.token_loss(patches, words, attention, padding, variant="official")
        return torch.stack([*sides, proto.prototype_loss(patches[:, 0], words[:, 0], prototypes)])

    plain = every_loss()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(every_loss(), plain)


def test_mistakes_are_named():
    patches, words, attention, padding = tokens()
    with pytest.raises(ConfigError, match="learnable attention"):
        mgca.token_loss(patches, words, attention, padding, variant="paper")
    with pytest.raises(ConfigError, match="variant"):
        mgca.token_loss(patches, words, attention, padding, variant="code")
    with pytest.raises(ConfigError, match="shapes"):
        mgca.token_loss(patches, words[:, 1:], attention, padding, variant="official")
