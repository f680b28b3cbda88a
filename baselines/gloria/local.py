"""Cosine of each word with its attended context, for all images and reports, without the contexts.

With attention β over the regions C of an image, a word's context is ``g = Cᵀβ``. Its dot product with the word w is
``βᵀ(Cw)``, and Cw is there already: it made the attention. Its length is ``√(βᵀ G β)`` with the Gram matrix ``G = CCᵀ``
of the image, computed once. So a tensor (images, reports, words, D) is never needed; the largest are (images, regions,
words of a chunk). The derivative is written out below, because it needs fewer products than automatic differentiation
of the same lines (``G β`` serves value and derivative) and lets the attention be recomputed chunk by chunk, as
``torch.utils.checkpoint`` would, so that memory is that of one chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvlp.errors import ConfigError

_NEVER = -1e30  # score of padding: no weight in a softmax, and no infinity that could meet a zero
_CHUNK_BYTES = {"cpu": 2**25, "other": 2**28}  # of one (images, regions, words) tensor of a chunk: fits into caches
_KEEP_BYTES = 2**29  # what may be kept from forward to backward instead of being recomputed
_KEPT = 3  # tensors of that size that a backward pass uses: scores, attention, G times attention


def region_list(regions: Tensor) -> Tensor:
    """Flatten (B, D, H, W) to (B, H·W, D), row by row; (B, R, D) is returned as it is."""
    if regions.ndim == 4:
        return regions.flatten(2).mT
    if regions.ndim == 3:
        return regions
    raise ConfigError(f"regions must be (B, D, H, W) or (B, R, D), not {tuple(regions.shape)}")


def word_scores(dots: Tensor, mask: Tensor, temp1: float, word_softmax: bool) -> Tensor:
    """Return the input of the softmax over regions: temp1 · dots, or temp1 times their softmax over the words.

    ``dots`` are (…, words), the words of one report; the bool ``mask`` is broadcast to them.
    """
    return temp1 * (dots.masked_fill(~mask, _NEVER).softmax(-1) if word_softmax else dots)


def local_cosine(
    regions: Tensor,
    words: Tensor,
    mask: Tensor,
    temp1: float,
    word_softmax: bool,
    eps: float,
    chunk: int | None,
    trim: bool | None = None,
) -> Tensor:
    """Return the cosine of each word with its context in each image.

    Args:
        regions: (B, R, D) float32 or float64.
        words: (B', L, D), same type.
        mask: (B', L) bool, on any device.
        temp1: factor before the softmax over regions.
        word_softmax: see :func:`word_scores`.
        eps: floor of the product of norms.
        chunk: reports at a time; None chooses, and keeps the attention for the backward pass if it is small.
        trim: read the mask and skip padding in the products: reports go by length, each chunk as long as its longest.
            None: if the mask is on the CPU, since reading one on a GPU would mean to wait.

    Returns:
        (B, B', L); 0 outside the mask.
    """
    regions = regions.contiguous()
    gram = _Gram.apply(regions)
    width = words.shape[1]
    order, longest = None, [width] * len(words)
    if mask.device.type == "cpu" if trim is None else trim:
        lengths = (mask * torch.arange(1, width + 1, device=mask.device)).amax(1).clamp_min(1)
        lengths, order = lengths.sort(descending=True, stable=True)
        longest = lengths.tolist()
    per_word = regions.shape[0] * regions.shape[1] * regions.element_size()
    budget = _CHUNK_BYTES["cpu" if regions.device.type == "cpu" else "other"]
    size = chunk or max(1, budget // max(per_word * longest[0], 1))
    keep = chunk is None and _KEPT * per_word * sum(longest) <= _KEEP_BYTES
    mask = mask.to(words.device)
    if order is not None:
        order = order.to(words.device)
        words, mask = words[order], mask[order]
    parts = []
    for start in range(0, len(words), size):
        part, inside = (t[start : start + size, : longest[start]] for t in (words, mask))
        cosine = _LocalCosine.apply(regions, gram, part, inside, temp1, word_softmax, eps, keep)
        parts.append(F.pad(cosine, (0, width - longest[start])))
    cosines = torch.cat(parts, 1)
    return cosines if order is None else cosines[:, order.argsort()]


def _attend(
    regions: Tensor, gram: Tensor, words: Tensor, mask: Tensor, temp1: float, word_softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (padding at −1e30), attention and G times attention, each (B, R, reports · words)."""
    images, count, dim = regions.shape
    scores = (regions.view(-1, dim) @ words.reshape(-1, dim).T).view(images, count, *mask.shape)
    scores.masked_fill_(~mask, _NEVER)
    attention = scores.softmax(-1).mul_(temp1) if word_softmax else scores * temp1
    attention = attention.view(images, count, -1).softmax(1)
    return scores.view(images, count, -1), attention, gram @ attention


class _Gram(torch.autograd.Function):
    """(B, R, D) → (B, R, R). Only symmetric gradients come back here, which saves one of two products."""

    @staticmethod
    def forward(ctx: Any, regions: Tensor) -> Tensor:
        ctx.save_for_backward(regions)
        return regions @ regions.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (regions,) = ctx.saved_tensors
        with torch.autocast(regions.device.type, enabled=False):
            return 2 * (grad @ regions)


class _LocalCosine(torch.autograd.Function):
    """Cosines of one chunk of reports, (B, chunk, L)."""

    @staticmethod
    def forward(
        ctx: Any,
        regions: Tensor,
        gram: Tensor,
        words: Tensor,
        mask: Tensor,
        temp1: float,
        word_softmax: bool,
        eps: float,
        keep: bool,
    ) -> Tensor:
        scores, attention, gram_attention = _attend(regions, gram, words, mask, temp1, word_softmax)
        # n = w·g and q = |g|², each (B, chunk · L)
        buffer = attention * scores
        n = buffer.sum(1).masked_fill_(~mask.flatten(), 0)
        q = torch.mul(attention, gram_attention, out=buffer).sum(1).clamp_min_(0)
        ctx.settings = temp1, word_softmax, eps
        saved = (scores, attention, gram_attention) if keep else ()
        ctx.save_for_backward(regions, gram, words, mask, n, q, *saved)
        norms = words.reshape(-1, words.shape[-1]).norm(dim=-1) * q.sqrt()
        return (n / norms.clamp_min(eps)).view(len(regions), *mask.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        regions, gram, words, mask, n, q, *saved = ctx.saved_tensors
        temp1, word_softmax, eps = ctx.settings
        images, count, dim = regions.shape
        with torch.autocast(regions.device.type, enabled=False):
            if not saved:
                saved = _attend(regions, gram, words, mask, temp1, word_softmax)
            scores, attention, gram_attention = saved
            flat = words.reshape(-1, dim)
            length, root = flat.norm(dim=-1), q.sqrt()
            norms = length * root
            # cos = n / max(|w| √q, eps); below the floor the norms have no gradient.
            free = norms > eps
            grad = grad.reshape(images, -1).masked_fill(~mask.flatten(), 0)
            d_n = grad / norms.clamp_min(eps)
            d_norms = torch.where(free, -d_n * n / norms.clamp_min(eps), 0)
            d_q = torch.where(free, d_norms * length / (2 * root), 0)
            d_length = (d_norms * root).sum(0)

            d_gram = (attention * d_q[:, None]) @ attention.mT
            # Softmax over regions: its inner product with the gradient is known from n and q.
            d_scores = (2 * d_q)[:, None] * gram_attention
            d_scores.addcmul_(d_n[:, None], scores).sub_((d_n * n + 2 * d_q * q)[:, None]).mul_(attention).mul_(temp1)
            if word_softmax:
                by_word = d_scores.view(images, count, *mask.shape)
                share = scores.view(images, count, *mask.shape).softmax(-1)
                by_word.sub_((share * by_word).sum(-1, keepdim=True)).mul_(share)
            d_scores.addcmul_(d_n[:, None], attention)

            d_flat = d_scores.view(images * count, -1)
            d_regions = (d_flat @ flat).view_as(regions)
            d_words = d_flat.T @ regions.view(-1, dim)
            d_words += (d_length / length.clamp_min(torch.finfo(length.dtype).tiny))[:, None] * flat
            # A masked word's score does not depend on the word: _NEVER stands in its place.
            d_words.masked_fill_(~mask.flatten()[:, None], 0)
        return d_regions, d_gram, d_words.view_as(words), None, None, None, None, None
