"""Scores of images against the prompts of classes: pure functions of embeddings that were made once.

A rule has a name, by which configs choose it (:data:`RULES`):

=============== ====================================================================================================
softmax         e^{cos⁺} / (e^{cos⁺} + e^{cos⁻}) without a temperature, one vector per side: mean of the normalised
                prompts, normalised again (CheXzero; CXR-CLIP and Med-UniC with one prompt). Between 0.12 and 0.88
difference      cos⁺ − cos⁻, the same vectors (G2D: positive above 0)
dot             e^{s⁺} / (e^{s⁺} + e^{s⁻}) of **unnormalised** dot products, one vector per side: plain mean of the
                unnormalised prompts (MaCo)
biovil          cos⁺ − cos⁻, one vector per side: mean of the unnormalised prompts, normalised (hi-ml)
cosine          cos⁺ alone, the vectors of ``softmax`` (MedKLIP's and KAD's class names)
best            the most similar positive prompt, alone (GLoRIA)
mean            mean over the cosines with the positive prompts, less that with the negative ones where there are any
probabilities   mean over all pairs of a positive and a negative prompt of the softmax of their cosines: an ensemble of
                probabilities where ``softmax`` is one of embeddings
class_sigmoid   σ of cos⁺ standardised over the **classes** of an image (CheXzero's single template): a class is scored
                by being nearer than the others, so that several classes are needed
=============== ====================================================================================================

``temperature`` divides the cosines of softmax and probabilities. With one prompt per side AUROC does not depend on it,
nor on whether softmax or difference is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.losses.precision import exact
from medvlp.metrics.zero_shot import prompt_embeddings

RULES: dict[str, tuple[Literal["raw", "unit"], bool]] = {
    "softmax": ("unit", True),
    "difference": ("unit", True),
    "dot": ("raw", True),
    "biovil": ("raw", True),
    "cosine": ("unit", False),
    "best": ("unit", False),
    "mean": ("unit", False),
    "probabilities": ("unit", True),
    "class_sigmoid": ("unit", False),
}
"""Name of a rule to the text embeddings that it needs ("raw", or of "unit" length) and whether it needs negatives."""

_PER_PROMPT = ("best", "mean", "probabilities")


@dataclass(frozen=True)
class PromptTable:
    """The prompts of several classes, each text once.

    Args:
        classes: names of C classes.
        texts: T different texts.
        positive: for each class the positions of its positive prompts in ``texts``; a text that comes twice counts
            twice.
        negative: the same for the negative ones; empty in sets without negation.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    positive: tuple[tuple[int, ...], ...]
    negative: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> "PromptTable":
        """From class to (positive, negative) prompts.

        Raises:
            ConfigError: no class; a class without positive prompts; an empty prompt.
        """
        if not prompts:
            raise ConfigError("zero-shot scores need at least one class with prompts")
        texts: dict[str, int] = {}
        sides: list[list[tuple[int, ...]]] = [[], []]
        for name, (positive, negative) in prompts.items():
            if not positive:
                raise ConfigError(f"class {name!r} has no positive prompt")
            for side, given in zip(sides, (positive, negative), strict=True):
                if any(not isinstance(text, str) or not text.strip() for text in given):
                    raise ConfigError(f"class {name!r} has an empty prompt: remove it, or say what to look for")
                side.append(tuple(texts.setdefault(text, len(texts)) for text in given))
        return cls(tuple(prompts), tuple(texts), tuple(sides[0]), tuple(sides[1]))

    def check(self, rule: str) -> None:
        """Whether a rule can score these classes.

        Raises:
            ConfigError: no such rule; it needs negative prompts that a class lacks, or several classes.
        """
        if rule not in RULES:
            raise ConfigError(f"there is no scoring rule {rule!r}; there are {', '.join(RULES)}")
        if RULES[rule][1] and (bare := [c for c, side in zip(self.classes, self.negative, strict=True) if not side]):
            raise ConfigError(
                f"the rule {rule} compares with negative prompts, and {bare[0]} has none; "
                f"take one of {', '.join(name for name, (_, pair) in RULES.items() if not pair)}"
            )
        if rule == "class_sigmoid" and len(self.classes) < 2:
            raise ConfigError("the rule class_sigmoid compares the classes of an image, and there is but one")


def positive_negative(positive: Tensor, negative: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax over two similarities: e^{p/τ} / (e^{p/τ} + e^{n/τ}).

    Args:
        positive: (...) similarities.
        negative: (...) similarities.
        temperature: τ; 1 is CheXzero's "none".

    Returns:
        (...) in (0, 1).
    """
    positive, negative = exact(positive, negative)
    return ((positive - negative) / temperature).sigmoid()


def standardised_over_classes(similarity: Tensor) -> Tensor:
    """σ of z-scores over the classes of each image, with the population deviation (CheXzero's single template).

    Args:
        similarity: (N, C).

    Returns:
        (N, C) in (0, 1); ½ where all classes of an image are equally similar.
    """
    (similarity,) = exact(similarity)
    centred = similarity - similarity.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, centred / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0).sigmoid()


def class_vectors(texts: Tensor, members: Sequence[Sequence[int]], pooling: str = "unit") -> Tensor:
    """One vector per class from the embeddings of its prompts.

    Args:
        texts: (T, d) embeddings.
        members: positions of the prompts of C classes.
        pooling: "unit": mean of the normalised embeddings, normalised (CheXzero); "direction": mean of the embeddings
            as they are, normalised (hi-ml); "mean": their plain mean (MaCo).

    Returns:
        (C, d); zeros for a class without prompts.
    """
    (texts,) = exact(texts)
    how = {
        "unit": prompt_embeddings,
        "direction": lambda side: F.normalize(side.mean(0), dim=-1),
        "mean": lambda side: side.mean(0),
    }[pooling]
    rows = [how(texts[list(side)]) if side else texts.new_zeros(texts.shape[1]) for side in members]
    return torch.stack(rows)


def prompt_scores(similarity: Tensor, table: PromptTable, rule: str, temperature: float = 1.0) -> Tensor:
    """Class scores from the similarity of each image with each prompt.

    Args:
        similarity: (N, T), columns ``table.texts``: cosines, or a method's own scores.
        table: the classes.
        rule: "best", "mean" or "probabilities".
        temperature: of "probabilities".

    Returns:
        (N, C).

    Raises:
        ConfigError: a rule that needs embeddings, or does not fit the classes.
    """
    table.check(rule)
    if rule not in _PER_PROMPT:
        raise ConfigError(f"the rule {rule} needs embeddings; scores of prompts go with {', '.join(_PER_PROMPT)}")
    columns = []
    for positive, negative in zip(table.positive, table.negative, strict=True):
        own = similarity[:, list(positive)]
        if rule == "best":
            columns.append(own.amax(1))
        elif rule == "mean":
            columns.append(own.mean(1) - similarity[:, list(negative)].mean(1) if negative else own.mean(1))
        else:
            others = similarity[:, list(negative)]
            columns.append(positive_negative(own[:, :, None], others[:, None], temperature).mean((1, 2)))
    return torch.stack(columns, 1)


def class_scores(
    images: Tensor, texts: Tensor, table: PromptTable, rule: str = "softmax", temperature: float = 1.0
) -> Tensor:
    """Scores of images for classes.

    Args:
        images: (N, d) image embeddings, unnormalised for the rule "dot"; otherwise of any length.
        texts: (T, d) embeddings of ``table.texts``, unnormalised for the rules "dot" and "biovil".
        table: the classes and their prompts.
        rule: a key of :data:`RULES`.
        temperature: of "softmax" and "probabilities".

    Returns:
        (N, C), larger where a class is more likely.

    Raises:
        ConfigError: no such rule, or one that does not fit the classes.
    """
    table.check(rule)
    images, texts = exact(images, texts)
    if rule == "dot":
        sides = (class_vectors(texts, side, "mean") for side in (table.positive, table.negative))
        positive, negative = (images @ side.T for side in sides)
        return positive_negative(positive, negative)
    images = F.normalize(images, dim=-1)
    if rule in _PER_PROMPT:
        return prompt_scores(images @ F.normalize(texts, dim=-1).T, table, rule, temperature)
    pooling = "direction" if rule == "biovil" else "unit"
    positive, negative = (images @ class_vectors(texts, side, pooling).T for side in (table.positive, table.negative))
    if rule == "softmax":
        return positive_negative(positive, negative, temperature)
    if rule == "cosine":
        return positive
    if rule == "class_sigmoid":
        return standardised_over_classes(positive)
    return positive - negative
