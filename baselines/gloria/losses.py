"""GLoRIA's losses: global contrast, word-region contrast, and the features of words that enter it.

Image j has regions c_r, report i has words w. ``s = c_r·w``; ``α`` = softmax of s over the words of a report; ``β`` =
softmax of temp1·α over the regions; context ``g = Σ_r β c_r``; score ``S_ji = ln Σ_w exp(temp2·cos(w, g))``; loss =
cross-entropy of temp3·S along rows and along columns, added. Everything is computed in float32 at least, since s is a
raw dot product of hundreds of dimensions that goes into a softmax.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from medvlp_baselines.gloria.local import local_cosine, region_list, word_scores
from torch import Tensor

from medvlp.errors import ConfigError, check_choice, check_range
from medvlp.losses.precision import exact
from medvlp.losses.tokens import Entries, entries

EPS = 1e-8
"""Floor of the product of norms under a cosine, as in the released code."""


class WordFeatures(NamedTuple):
    """Features of reports from a text encoder."""

    words: Tensor  # (B, L, D), row 0 [CLS], then the words, [SEP], zeros
    sentence: Tensor  # (B, D)
    mask: Tensor  # (B, L) bool, true at [CLS] and the words: what the local loss uses in training
    entries: Entries  # for other masks (zero_shot_mask)


def word_features(
    hidden: Tensor, word_groups: Tensor, attention_mask: Tensor, layers: Literal["sum", "mean"] = "sum"
) -> WordFeatures:
    """Sum pieces into words and layers into one (or average them); the sentence is the mean over all rows.

    The mean counts the zero rows of padding, as the released code does; that scales the sentence but leaves its
    direction, all that the cosine sees. The released code does not count [UNK] as a word, by its bracket, and so drops
    the last word of such a report; here [UNK] is a word.

    Args:
        hidden: (K, B, L, D) hidden states of the last K layers (4 in the released configuration).
        word_groups: (B, L), see :func:`medvlp.losses.tokens.entries`.
        attention_mask: (B, L).
        layers: how the layers are combined.
    """
    merged = entries(word_groups, attention_mask)
    # Merging is linear: combining the layers first merges one tensor instead of K.
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    combined = hidden.sum(0, dtype=dtype) if layers == "sum" else hidden.mean(0, dtype=dtype)
    words = merged.merge(combined)
    return WordFeatures(words, words.mean(1), merged.up_to(merged.words + 1), merged)


def zero_shot_mask(merged: Entries) -> Tensor:
    """Return a mask (B, L) of the words without [CLS], which the released inference skips, unlike training.

    The released path takes the number of CHARACTERS of a prompt for its length, so that [SEP] and zero rows take part
    and floor the score at 0; build that mask with ``merged.up_to`` to reproduce it.
    """
    mask = merged.up_to(merged.words + 1)
    mask[:, 0] = False
    return mask


def local_similarity(
    regions: Tensor,
    words: Tensor,
    mask: Tensor,
    *,
    temp1: float = 4.0,
    temp2: float = 5.0,
    agg: Literal["sum", "mean", "max"] = "sum",
    word_softmax: bool = True,
    rescale: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Score every image with every report, (B, B'), without forming a context per pair.

    Memory grows with images · regions · words of one chunk of reports, and with the (B, B') result. Attention is
    recomputed in the backward pass, except where keeping it costs little.

    Args:
        regions: (B, D, H, W) or (B, R, D) image regions, not normalised.
        words: (B', L, D) word embeddings, not normalised.
        mask: (B', L) bool, words that take part. A report without any scores 0 with every image, as one word of
            cosine 0 would, and gets no gradient. A mask on the CPU saves the work on padding, on a GPU too: there, make
            it before the batch is moved.
        temp1: sharpness of the attention over regions.
        temp2: sharpness of the aggregation over words.
        agg: "sum" (training), "mean" of exponentials (the function's unused alternative) or "max" (zero-shot).
        word_softmax: normalise over words before the softmax over regions, as the code does. Without it the attention
            is the softmax over regions of temp1·s, the paper's Eq. as remembered (not checked against its text).
        rescale: divide by temp2, the paper's outer exponent (as above).
        chunk: reports at a time; chosen from the sizes if None.
    """
    check_range("[1, inf)", chunk=chunk)
    check_choice("agg", agg, ("sum", "mean", "max"))
    regions = region_list(regions)
    if words.ndim != 3 or mask.shape != words.shape[:2] or words.shape[2] != regions.shape[2]:
        raise ConfigError(
            f"regions (B, R, D), words (B', L, D) and mask (B', L) have the shapes {tuple(regions.shape)},"
            f" {tuple(words.shape)} and {tuple(mask.shape)}"
        )
    if not regions.numel() or not words.numel():
        raise ConfigError("the local similarity needs at least one image, one report and room for one word")
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = exact(regions, words)
        mask = mask.bool()
        cosine = local_cosine(regions, words, mask, temp1, word_softmax, EPS, chunk)
        mask = mask.to(cosine.device)
        # An empty report keeps one word, whose cosine is 0.
        counted = mask | (~mask.any(1, keepdim=True) & (torch.arange(mask.shape[1], device=mask.device) == 0))
        scores = (temp2 * cosine).masked_fill(~counted, -torch.inf)
        result = scores.amax(-1) if agg == "max" else scores.logsumexp(-1)
        if agg == "mean":
            result = result - counted.sum(1).to(result.dtype).log()
        return result / temp2 if rescale else result


def word_attention(
    regions: Tensor, words: Tensor, mask: Tensor, *, temp1: float = 4.0, word_softmax: bool = True
) -> Tensor:
    """Return the attention (B, L, R) of each word of report i over the regions of image i, for figures.

    Arguments as in :func:`local_similarity`, with as many reports as images. Each row is a distribution over regions,
    or zeros for words outside the mask; ``attention @ regions`` is the words' contexts.
    """
    regions = region_list(regions)
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = exact(regions, words)
        scores = word_scores(regions @ words.mT, mask[:, None].bool(), temp1, word_softmax)
        return scores.softmax(1).mT * mask[..., None]


def two_way_cross_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy along the rows and along the columns of (B, B) scores, positives on the diagonal.

    Image → report and report → image: each ln B for equal logits, 0 (without gradient) for a batch of one.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ConfigError(f"scores must be (B, B), one report per image, not {tuple(logits.shape)}")
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)


def local_loss(regions: Tensor, words: Tensor, mask: Tensor, *, temp3: float = 10.0, **options: Any) -> Tensor:
    """Contrast temp3 times :func:`local_similarity`, with its options: both directions, 2 ln B for equal scores."""
    rows, columns = two_way_cross_entropy(temp3 * local_similarity(regions, words, mask, **options))
    return rows + columns


def global_similarity(image: Tensor, sentence: Tensor) -> Tensor:
    """Return the cosines (B, B') of images (B, D) with reports (B', D), the product of norms clamped at 1e-8."""
    with torch.autocast(image.device.type, enabled=False):
        image, sentence = exact(image, sentence)
        norms = image.norm(dim=1)[:, None] * sentence.norm(dim=1)
        return image @ sentence.T / norms.clamp_min(EPS)


def global_loss(image: Tensor, sentence: Tensor, *, temp3: float = 10.0) -> Tensor:
    """Contrast temp3 times the cosines of (B, D) and (B, D); both directions added, 2 ln B for equal cosines."""
    rows, columns = two_way_cross_entropy(temp3 * global_similarity(image, sentence))
    return rows + columns


def zero_shot_similarity(
    regions: Tensor, image: Tensor, words: Tensor, sentence: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Score N images with P prompts, as the released inference path combines the global and the best word's score.

    The mask is that of :func:`zero_shot_mask`, options are those of :func:`local_similarity`, as in training. With
    ``rescale`` the local score is the best word's cosine itself.

    Returns:
        Their mean, the global and the local scores, each (N, P).
    """
    whole = global_similarity(image, sentence)
    local = local_similarity(regions, words, mask, agg="max", **options)
    return (whole + local) / 2, whole, local


def class_scores(similarity: Tensor) -> Tensor:
    """Take the best prompt of each class, standardised over the images if there are several.

    The score of an image so depends on the others, as in the released code: use it for reproduction, and the plain
    maximum where each image must stand alone.

    Scores (N, C, P) of N images with P prompts of each of C classes give (N, C), of mean 0 and population standard
    deviation 1 over the images. A class without spread scores 0.
    """
    best = similarity.amax(-1)
    if len(best) == 1:
        return best
    centred = best - best.mean(0)
    spread = centred.square().mean(0).sqrt()
    return torch.where(spread > 0, centred / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0)
