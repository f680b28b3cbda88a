"""Zero-shot classification scores and their AUROC."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.metrics.curves import Curve


def prompt_embeddings(prompts: Tensor) -> Tensor:
    """One vector for an ensemble of prompts: mean of the normalised embeddings, normalised again (CheXzero).

    Args:
        prompts: (n, d).

    Returns:
        (d,), of unit length.
    """
    return F.normalize(F.normalize(prompts, dim=-1).mean(0), dim=-1)


def zero_shot_probability(images: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """CheXzero's softmax over the two prompts of each finding, of plain cosines without a temperature.

    Args:
        images: (N, d).
        positive: (C, d).
        negative: (C, d).

    Returns:
        (N, C) in (0, 1); above ½ where the positive prompt is nearer.
    """
    images = F.normalize(images, dim=-1)
    difference = images @ (F.normalize(positive, dim=-1) - F.normalize(negative, dim=-1)).T
    return difference.sigmoid()  # exp(p) / (exp(p) + exp(n))


def auroc_per_class(scores: Tensor, labels: Tensor) -> Tensor:
    """AUROC of each class over the samples whose label is known.

    Args:
        scores: (N, C).
        labels: (N, C): 1 present, 0 absent; anything else (NaN, −1 uncertain) is left out.

    Returns:
        (C,) in [0, 1]; NaN for a class without both a positive and a negative, or with a score that is NaN.
        torchmetrics would give 0 for the first, which drags a macro mean down; it also takes scores outside [0, 1]
        for logits and makes ties of large ones.
    """
    curves = [Curve.of(scores[:, c], labels[:, c]) for c in range(scores.shape[1])]
    found = torch.stack([curve.auroc()[0] for curve in curves]).float() if curves else scores.new_zeros(0)
    return torch.where(scores.isnan().any(0), torch.nan, found)


def zero_shot_auroc(
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    embed: Callable[[Sequence[str]], Tensor],
) -> dict[str, float]:
    """AUROC of the positive against the negative prompts of each finding.

    Args:
        images: (N, d) embeddings.
        labels: (N, K), columns ``names``; see :func:`auroc_per_class` for what counts.
        names: K findings.
        prompts: finding to its positive and its negative prompts; without negative ones the cosine with the positive
            prompts alone is the score.
        embed: n texts to (n, d); called once, for all prompts together.

    Returns:
        Finding to AUROC for each finding that has prompts and both a positive and a negative sample, and "mean" over
        them; empty where there is none.
    """
    columns = [i for i, name in enumerate(names) if name in prompts]
    if not columns:
        return {}
    sides = [side for i in columns for side in prompts[names[i]]]  # positive, negative, positive, …
    embedded = embed([text for side in sides for text in side]).split([len(side) for side in sides])
    # no negative prompt: a vector of zeros, whose cosine is 0, leaves the cosine with the positive ones
    vectors = torch.stack(
        [prompt_embeddings(side) if len(side) else images.new_zeros(images.shape[1]) for side in embedded]
    )
    scores = zero_shot_probability(images, vectors[::2], vectors[1::2])
    values = auroc_per_class(scores.cpu(), labels[:, columns].cpu())
    result = {names[i]: float(value) for i, value in zip(columns, values, strict=True) if not value.isnan()}
    if result:
        result["mean"] = sum(result.values()) / len(result)
    return result
