"""MGCA's token alignment, and the merging of word pieces that precedes it.

``variant: official`` is the released code with its defaults, ``variant: paper`` the equations of the paper. Where the
paper leaves something open, the docstring says what is taken. Everything is computed in float32 at least: cosines are
divided by temperatures near 0.1.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.errors import ConfigError, check_choice
from medvlp.losses.precision import exact
from medvlp.losses.tokens import entries

Variant = Literal["paper", "official"]

COMMAND_LINE_WEIGHTS = (1.0, 1.0, 1.0)
"""Weights of the instance, token and prototype terms: the paper's, and the released command line's."""

CONSTRUCTOR_WEIGHTS = (1.0, 0.7, 0.5)
"""The same of the released class when it is built without the command line."""


class MergedReport(NamedTuple):
    """A batch of reports, word by word."""

    report: Tensor  # (B, D), the [CLS] state
    words: Tensor  # (B, L − 1, D), words, then [SEP], then zeros
    attention: Tensor  # (B, L − 1), attention that [CLS] pays to each word; without gradient
    padding: Tensor  # (B, L − 1) bool, true where there is no word


def merge_report(
    hidden: Tensor, attention: Tensor, word_groups: Tensor, attention_mask: Tensor, variant: Variant = "paper"
) -> MergedReport:
    """Sum word pieces into words, and [CLS]'s attention to them.

    Official: a piece at position p gets the attention paid to p + 1 (so the last word gets [SEP]'s, and [SEP] that of
    the first padding, 0); [SEP] does not count as padding; and where a text fills all L positions, the last position is
    never read, which loses [SEP] and the last word. The texts must be padded to the released length of 112 for that to
    mean the same (``padding: max_length``): with padding to the longest text, the longest would lose its last word.
    Paper: each piece gets its own attention, and only words count; the paper does not say what [SEP] does.

    Args:
        hidden: (B, L, D) last hidden state.
        attention: (B, heads, n, L) of the last layer, of which the first row is read, or (B, L), its mean over heads.
        word_groups: (B, L), see :func:`medvlp.losses.tokens.entries`.
        attention_mask: (B, L).
        variant: "paper" or "official".
    """
    check_choice("variant", variant, ("paper", "official"))
    hidden, paid = exact(hidden, attention.detach())
    if paid.ndim == 4:
        paid = paid[:, :, 0].mean(1)
    merged = entries(word_groups, attention_mask)
    if variant == "official":
        paid = torch.cat([paid[:, 1:], paid.new_zeros(len(paid), 1)], 1)
        full = attention_mask[:, -1].bool()
        kept = counted = torch.where(full, (merged.count - 2).clamp_min(1), merged.count)
    else:
        kept, counted = merged.count, merged.words + 1
    words = merged.merge(hidden).masked_fill(~merged.up_to(kept)[..., None], 0)
    inside = merged.up_to(counted)
    weights = merged.merge(paid[..., None])[..., 0].masked_fill(~inside, 0)
    return MergedReport(words[:, 0], words[:, 1:], weights[:, 1:], ~inside[:, 1:])


def clip_weights(weights: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Clip the non-zero weights of each row (B, L) to its quantiles ``low`` and ``high``, then divide by their sum.

    Quantiles are interpolated linearly. Zeros are ignored and stay zero. The result has no gradient; each row has the
    sum 1, or is all zeros.
    """
    (weights,) = exact(weights.detach())
    there = weights != 0
    last = (there.sum(1, keepdim=True) - 1).clamp_min(0)
    ordered = weights.masked_fill(~there, torch.inf).sort(1).values

    def quantile(q: float) -> Tensor:
        position = q * last.to(weights.dtype)
        below = position.floor()
        first = ordered.gather(1, below.long())
        second = ordered.gather(1, torch.minimum(below.long() + 1, last))
        return torch.lerp(first, second, position - below)

    clipped = torch.minimum(torch.maximum(weights, quantile(low)), quantile(high))
    clipped = torch.where(there, clipped, 0)
    total = clipped.sum(1, keepdim=True)
    return clipped / torch.where(total > 0, total, 1)


def soft_match(
    queries: Tensor, keys: Tensor, temperature: float, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attend without parameters: weights (B, Q, K), and contexts (B, Q, d), not normalised.

    Queries (B, Q, d) and keys (B, K, d) are L2-normalised; keys at ``padding`` (B, K) get no weight.
    """
    scores = queries @ keys.mT / temperature
    if padding is not None:
        scores = scores.masked_fill(padding[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    return weights, weights @ keys


class CrossAttention(nn.Module):
    """The paper's Eq. 4: ``o = O Σ_k softmax((Q x)ᵀ(K y_k)/√d) V y_k``, one head, d × d matrices without bias.

    Queries are (B, Q, d), keys (B, K, d); ``padding`` (B, K) bool marks keys without weight. Where all are padding, all
    count alike.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the contexts of the queries, (B, Q, d), not normalised."""
        bias, dtype = None, queries.dtype
        # The losses' float32 against weights of a model in true half precision; otherwise a no-op.
        queries, keys = queries.to(self.query.weight.dtype), keys.to(self.query.weight.dtype)
        q, k, v = self.query(queries)[:, None], self.key(keys)[:, None], self.value(keys)[:, None]
        if padding is not None:
            bias = torch.zeros_like(padding, dtype=q.dtype).masked_fill(padding, torch.finfo(q.dtype).min / 2)
            bias = bias[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[:, 0]).to(dtype)

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the attention alone, (B, Q, K), rows of sum 1, for figures."""
        queries, keys = queries.to(self.query.weight.dtype), keys.to(self.query.weight.dtype)
        scores = exact(self.query(queries) @ self.key(keys).mT)[0] / queries.shape[-1] ** 0.5
        return scores.softmax(-1)


def token_contrast(
    tokens: Tensor, contexts: Tensor, weights: Tensor, temperature: float, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Contrast each token with its context against the others of the same sample, weighted.

    Args:
        tokens: (B, L, d), L2-normalised.
        contexts: (B, L, d), L2-normalised.
        weights: (B, L), of each token's loss.
        temperature: divides the dot products.
        padding: (B, L) bool, tokens that are no negatives either (their weights must be 0). None: all are.

    Returns:
        Token → context and context → token: sums over tokens, means over samples.
    """
    scores = tokens @ contexts.mT / temperature
    positive = scores.diagonal(dim1=1, dim2=2)
    if padding is not None:
        # Finite, so that a row of padding alone times its weight of 0 is 0.
        scores = scores.masked_fill(padding[:, None] | padding[:, :, None], torch.finfo(scores.dtype).min / 2)
    rows = weights * (scores.logsumexp(2) - positive)
    columns = weights * (scores.logsumexp(1) - positive)
    return rows.sum(1).mean(), columns.sum(1).mean()


class TokenLoss(NamedTuple):
    """The two sides of the token alignment, to be added; each already carries the variant's factors."""

    patch: Tensor
    word: Tensor


def token_loss(
    patches: Tensor,
    words: Tensor,
    word_attention: Tensor,
    padding: Tensor,
    *,
    patch_attention: Tensor | None = None,
    variant: Variant = "paper",
    temperature: float | None = None,
    patch_to_word: nn.Module | None = None,
    word_to_patch: nn.Module | None = None,
) -> TokenLoss:
    """Align the patches and the words of the same pair.

    Official: parameter-free attention; weights clipped to their 10 % and 90 % quantiles and of sum 1; half of the two
    directions on each side; padding is hidden from patches looking for words, but stays a negative among the words.
    Paper: Eq. 4 with ``patch_to_word`` and ``word_to_patch``; raw weights; factor 1/(2 N S), for words 1/(2 N n) with
    the report's own number of words n; padding takes no part; half of both sides. A report without words has no token
    loss. Where no attention map exists (ResNet), each patch has weight 1/S in both variants.

    Args:
        patches: (B, S, d); normalised here.
        words: (B, L, d), without [CLS]; normalised here.
        word_attention: (B, L) raw weights of the words, of :func:`merge_report`; no gradient flows into them.
        padding: (B, L) bool, of :func:`merge_report`.
        patch_attention: (B, S) attention of the class token to the patches, mean over heads; None for equal weights.
        variant: "paper" or "official".
        temperature: 0.07 (paper) or 0.1 (official) if None.
        patch_to_word: (queries, keys, padding) → contexts, e.g. :class:`CrossAttention`, for patches looking for words.
        word_to_patch: the same for words looking for patches.
    """
    check_choice("variant", variant, ("paper", "official"))
    if patches.shape[::2] != words.shape[::2] or padding.shape != words.shape[:2]:
        raise ConfigError(
            f"patches (B, S, d), words (B, L, d) and padding (B, L) have the shapes {tuple(patches.shape)},"
            f" {tuple(words.shape)} and {tuple(padding.shape)}"
        )
    paper = variant == "paper"
    if paper and (patch_to_word is None or word_to_patch is None):
        raise ConfigError("the paper's token alignment has learnable attention: pass patch_to_word and word_to_patch")
    tau = temperature or (0.07 if paper else 0.1)
    with torch.autocast(patches.device.type, enabled=False):
        patches, words, word_attention = exact(patches, words, word_attention.detach())
        patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
        count = patches.shape[1]
        patch_weights = patches.new_full(patches.shape[:2], 1 / count)
        if patch_attention is not None:
            (patch_weights,) = exact(patch_attention.detach())
            patch_weights = patch_weights if paper else clip_weights(patch_weights)
        if paper:
            assert patch_to_word is not None
            assert word_to_patch is not None
            patch_context = patch_to_word(patches, words, padding)
            word_context = word_to_patch(words, patches, None)
            length = (~padding).sum(1, keepdim=True)
            word_weights = word_attention.masked_fill(padding, 0) / length.clamp_min(1)
            patch_weights = patch_weights * (length > 0) / count
        else:
            patch_context = soft_match(patches, words, tau, padding)[1]
            word_context = soft_match(words, patches, tau)[1]
            word_weights = clip_weights(word_attention)
        if paper or patch_attention is None:  # the code leaves the context of a ViT's patches as it is
            patch_context = F.normalize(patch_context, dim=-1)
        patch = token_contrast(patches, patch_context, patch_weights, tau)
        word = token_contrast(words, F.normalize(word_context, dim=-1), word_weights, tau, padding if paper else None)
        factor = 0.25 if paper else 0.5  # the paper halves both sides once more
        return TokenLoss(factor * (patch[0] + patch[1]), factor * (word[0] + word[1]))


def weighted_terms(
    instance: Tensor, token: Tensor, prototype: Tensor, weights: tuple[float, float, float] = COMMAND_LINE_WEIGHTS
) -> dict[str, Tensor]:
    """Return the three terms by name, weighted by λ₁, λ₂ and λ₃; the loss is their sum."""
    terms = {"instance": instance, "token": token, "prototype": prototype}
    return {name: weight * term for (name, term), weight in zip(terms.items(), weights, strict=True)}
