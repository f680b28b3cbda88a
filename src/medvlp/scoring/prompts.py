"""Scores of images against the prompts of classes: pure functions of embeddings that are computed once.

Configs choose a rule by name (:data:`RULES`):

=============== ====================================================================================================
softmax         e^{cos⁺} / (e^{cos⁺} + e^{cos⁻}) without a temperature, one vector per side: mean of the normalised
                prompts, normalised again (CheXzero; CXR-CLIP and Med-UniC with one prompt). Between 0.12 and 0.88
difference      cos⁺ − cos⁻, the same vectors (G2D: positive above 0)
dot             e^{s⁺} / (e^{s⁺} + e^{s⁻}) of **unnormalised** dot products, one vector per side: plain mean of the
                unnormalised prompts (MaCo)
biovil          cos⁺ − cos⁻, one vector per side: mean of the unnormalised prompts, normalised (hi-ml)
cosine          cos⁺ alone, the vectors of ``softmax`` (MedKLIP's and KAD's class names)
best            the most similar positive prompt, alone (GLoRIA)
mean            mean of the cosines with the positive prompts, minus that with the negative ones if there are any
probabilities   mean over all pairs of a positive and a negative prompt of the softmax of their cosines: an ensemble of
                probabilities where ``softmax`` is one of embeddings
class_sigmoid   σ of cos⁺ standardised over the **classes** of an image (CheXzero's single template): the score compares
                a class with the others, so several classes are needed
=============== ====================================================================================================

``temperature`` divides the cosines of softmax and probabilities. With one prompt per side AUROC depends neither on it
nor on the choice between softmax and difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import ConfigError
from medvlp.losses.precision import exact
from medvlp.metrics.classification import classification_measures
from medvlp.metrics.samples import Samples

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
"""Rule to the text embeddings that it needs ("raw", or of "unit" length) and whether it needs negative prompts."""

PER_PROMPT = ("best", "mean", "probabilities")
"""Rules that combine a score per prompt, and so work with a method's own scores (:func:`prompt_scores`)."""


def check_rule(rule: str) -> None:
    """Raise ConfigError for an unknown scoring rule."""
    if rule not in RULES:
        raise ConfigError(f"unknown scoring rule {rule!r}; expected one of: {', '.join(RULES)}")


@dataclass(frozen=True)
class PromptTable:
    """The prompts of C classes, as T different texts and the indices of each class's prompts in them.

    A text that a class repeats counts repeatedly; ``negative`` is empty in sets without negation.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    positive: tuple[tuple[int, ...], ...]
    negative: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> "PromptTable":
        """Build the table from class to (positive, negative) prompts; each class needs a positive one."""
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

    @property
    def default_rule(self) -> str:
        """CheXzero's "softmax" where all classes have negative prompts, "cosine" otherwise."""
        return "softmax" if all(self.negative) else "cosine"

    def check(self, rule: str) -> None:
        """Raise ConfigError for an unknown rule, or one that lacks negative prompts or several classes."""
        check_rule(rule)
        if RULES[rule][1] and (bare := [c for c, side in zip(self.classes, self.negative, strict=True) if not side]):
            raise ConfigError(
                f"the rule {rule} needs negative prompts, and {bare[0]} has none; "
                f"use one of: {', '.join(name for name, (_, pair) in RULES.items() if not pair)}"
            )
        if rule == "class_sigmoid" and len(self.classes) < 2:
            raise ConfigError("the rule class_sigmoid compares the classes of an image and needs at least two")


def prompt_embeddings(prompts: Tensor) -> Tensor:
    """Pool (n, d) prompts: mean of the normalised embeddings, normalised again (CheXzero); (d,)."""
    return F.normalize(F.normalize(prompts, dim=-1).mean(0), dim=-1)


def zero_shot_probability(images: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """CheXzero's softmax over the two prompts of each class, of plain cosines without a temperature.

    (N, d) images and (C, d) prompts per side give (N, C) in (0, 1); above ½ where the positive prompt is nearer.
    """
    difference = F.normalize(positive, dim=-1) - F.normalize(negative, dim=-1)
    return (F.normalize(images, dim=-1) @ difference.T).sigmoid()


def standardised_over_classes(similarity: Tensor) -> Tensor:
    """σ of z-scores over the classes of each image (N, C), with the population deviation (CheXzero's single template).

    In (0, 1); ½ where all classes of an image are equally similar.
    """
    (similarity,) = exact(similarity)
    centred = similarity - similarity.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, centred / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0).sigmoid()


def class_vectors(texts: Tensor, members: Sequence[Sequence[int]], pooling: str = "unit") -> Tensor:
    """Pool the embeddings (T, d) of the prompts of each class to (C, d); zeros for a class without prompts.

    Args:
        texts: (T, d) embeddings.
        members: indices of the prompts of C classes.
        pooling: "unit": mean of the normalised embeddings, normalised (CheXzero); "direction": mean of the embeddings
            as they are, normalised (hi-ml); "mean": their plain mean (MaCo).
    """
    (texts,) = exact(texts)
    pool: Callable[[Tensor], Tensor] = {
        "unit": prompt_embeddings,
        "direction": lambda side: F.normalize(side.mean(0), dim=-1),
        "mean": lambda side: side.mean(0),
    }[pooling]
    zero = texts.new_zeros(texts.shape[1])
    return torch.stack([pool(texts[list(side)]) if side else zero for side in members])


def prompt_scores(similarity: Tensor, table: PromptTable, rule: str, temperature: float = 1.0) -> Tensor:
    """Combine similarities (N, T), columns ``table.texts``, cosines or a method's own scores, to class scores (N, C).

    Raises:
        ConfigError: the rule is not one of :data:`PER_PROMPT`, or does not fit the classes.
    """
    table.check(rule)
    if rule not in PER_PROMPT:
        raise ConfigError(f"the rule {rule} needs embeddings; scores per prompt support {', '.join(PER_PROMPT)}")
    columns = []
    for positive, negative in zip(table.positive, table.negative, strict=True):
        present, absent = similarity[:, list(positive)], similarity[:, list(negative)]
        if rule == "best":
            columns.append(present.amax(1))
        elif rule == "mean":
            columns.append(present.mean(1) - absent.mean(1) if negative else present.mean(1))
        else:
            present, absent = exact(present, absent)
            columns.append(((present[:, :, None] - absent[:, None]) / temperature).sigmoid().mean((1, 2)))
    return torch.stack(columns, 1)


def class_scores(
    images: Tensor, texts: Tensor, table: PromptTable, rule: str = "softmax", temperature: float = 1.0
) -> Tensor:
    """Score images for classes: (N, C), larger where a class is more likely.

    Args:
        images: (N, d) image embeddings, unnormalised for the rule "dot"; otherwise of any length.
        texts: (T, d) embeddings of ``table.texts``, unnormalised for the rules "dot" and "biovil".
        table: the classes and their prompts.
        rule: a key of :data:`RULES`.
        temperature: of "softmax" and "probabilities".
    """
    table.check(rule)
    images, texts = exact(images, texts)
    if rule != "dot":
        images = F.normalize(images, dim=-1)
    if rule in PER_PROMPT:
        return prompt_scores(images @ F.normalize(texts, dim=-1).T, table, rule, temperature)
    pooling = {"dot": "mean", "biovil": "direction"}.get(rule, "unit")
    positive, negative = (class_vectors(texts, side, pooling) for side in (table.positive, table.negative))
    if rule in ("cosine", "class_sigmoid"):
        similarity = images @ positive.T
        return similarity if rule == "cosine" else standardised_over_classes(similarity)
    # The difference first: both products are larger than it, and their rounding would decide between near-ties.
    margin = images @ (positive - negative).T
    return (margin / (temperature if rule == "softmax" else 1.0)).sigmoid() if rule in ("dot", "softmax") else margin


def zero_shot_auroc(
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    embed: Callable[[Sequence[str]], Tensor],
) -> dict[str, float]:
    """AUROC of each class under the default rule, by the same functions as the zero-shot task.

    Args:
        images: (N, d) embeddings.
        labels: (N, K), columns ``names``: 1 present, 0 absent, anything else unknown and skipped.
        names: K class names.
        prompts: class to (positive, negative) prompts.
        embed: n texts to (n, d); called once, with all prompts.

    Returns:
        Class to AUROC for each class that has prompts and both a positive and a negative sample, and "mean" over them;
        empty if there is none, or if embeddings are not finite.
    """
    columns = [i for i, name in enumerate(names) if name in prompts]
    if not columns:
        return {}
    table = PromptTable.of({names[i]: prompts[names[i]] for i in columns})
    scores = class_scores(images, embed(table.texts), table, table.default_rule).cpu()
    if bool(scores.isnan().any()):
        return {}
    samples = Samples(torch.arange(len(scores)), {"score": scores, "label": labels[:, columns].cpu()})
    measures = classification_measures(samples, names=table.classes)
    keys = {name: f"auroc/{name}" if len(columns) > 1 else "auroc" for name in table.classes} | {"mean": "auroc"}
    return {name: float(measures[key]) for name, key in keys.items() if not measures[key].isnan()}
