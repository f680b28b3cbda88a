"""Zero-shot classification: images against prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.classification import (
    best_f1_thresholds,
    best_mcc_thresholds,
    classification_measures,
    youden_thresholds,
)
from medvlp.metrics.curves import known
from medvlp.metrics.samples import Samples, SampleStore, named_values, sample_weights, weighted_mean
from medvlp.prompts import PromptSet, available, load_prompts
from medvlp.scoring.prompts import PER_PROMPT, RULES, PromptTable, check_rule, class_scores, prompt_scores
from medvlp.tasks.base import protocol_settings
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.evaluator import Evaluator

Choice = Literal["f1", "mcc", "youden", "none"]

_CHOOSE = {"f1": best_f1_thresholds, "mcc": best_mcc_thresholds, "youden": youden_thresholds}
_MIDDLE = {"softmax": 0.5, "dot": 0.5, "probabilities": 0.5, "class_sigmoid": 0.5, "difference": 0.0, "biovil": 0.0}
"""Score above which a rule prefers the positive prompts to the negative ones."""


@dataclass(frozen=True)
class _Protocol:
    prompts: str
    rule: str
    thresholds: Choice = "f1"
    prompts_of: Mapping[str, str] = field(default_factory=dict)  # by corpus
    fixed: bool = False  # F1 and accuracy at the rule's own threshold
    weighted: bool = False  # MaCo's F1
    top1: bool = False  # accuracy of the best class
    own_scores: bool = False


_MACO = {"rsna": "maco_rsna", "siim": "maco_siim"}
_CXRCLIP = {"rsna": "cxrclip_rsna", "siim": "cxrclip_siim"}
PROTOCOLS: dict[str, _Protocol] = {
    "default": _Protocol("chexpert", "softmax"),
    "chexzero": _Protocol("chexzero", "softmax", thresholds="mcc"),
    "g2d": _Protocol("g2d", "difference", fixed=True),
    "maco": _Protocol("maco", "dot", prompts_of=_MACO, fixed=True, weighted=True),
    "medklip": _Protocol("medklip", "cosine"),
    "kad": _Protocol("kad", "cosine"),
    "biovil": _Protocol("biovil_rsna", "biovil", fixed=True),
    "cxrclip": _Protocol("g2d", "softmax", prompts_of=_CXRCLIP, fixed=True),
    "gloria": _Protocol("gloria_5x200", "best", top1=True, own_scores=True),
    "medclip": _Protocol("gloria_5x200_all", "mean", prompts_of={"rsna": "medclip_rsna"}, top1=True),
}
"""Protocols by name; see :class:`ZeroShotClassification`."""


def decisions(
    decided: Tensor, labels: Tensor, weights: Tensor | None = None, weighted: bool = False
) -> dict[str, Tensor]:
    """Compute ``f1`` and ``accuracy`` of (N, C) decisions, each (R, C) float64, R = 1 without weights.

    ``weighted`` adds MaCo's ``f1_weighted``, the mean of those of the positives and of the negatives weighted by their
    numbers. A class without both a positive and a negative has NaN.
    """
    usable, positive = known(labels), labels == 1
    w = (torch.ones(1, len(labels)) if weights is None else weights).double()
    counted = (decided & positive, decided & usable, positive, usable)
    hits, chosen, present, total = (w @ rows.double() for rows in counted)
    absent = total - present
    rejected = absent - (chosen - hits)  # negatives that were not chosen
    defined = (present > 0) & (absent > 0)
    f1 = 2 * hits / (chosen + present)
    values = {"f1": f1, "accuracy": (hits + rejected) / total}
    if weighted:
        other = 2 * rejected / (total - chosen + absent).clamp_min(1e-300)
        values["f1_weighted"] = (present * f1 + absent * other) / total
    return {name: torch.where(defined, value, torch.nan) for name, value in values.items()}


def zero_shot_measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    names: Sequence[str],
    thresholds: Tensor | None = None,
    middle: float | None = None,
    weighted: bool = False,
    top1: bool = False,
) -> dict[str, Tensor]:
    """Compute the metrics of :class:`ZeroShotClassification` (see :data:`medvlp.metrics.bootstrap.Measures`).

    Args:
        samples: ``score`` and ``label``, (N, C) each.
        weights: (R, N) multiplicity of each sample; None: 1.
        names: C labels.
        thresholds: (C,) of ``f1`` and ``accuracy``, NaN skips a class; None: neither.
        middle: score above which the positive prompts win, for the metrics ``_fixed``; None: none of these.
        weighted: also ``f1_weighted``, with ``middle``.
        top1: also accuracy of the best class, of at least two.
    """
    scores, labels = samples["score"], samples["label"]
    result = classification_measures(samples, weights, names=names, thresholds=thresholds)
    if middle is not None:
        for key, value in decisions(scores >= middle, labels, weights, weighted).items():
            name = key if key == "f1_weighted" else f"{key}_fixed"
            result[name] = value.nanmean(1)
            if len(names) > 1:
                result.update({f"{name}/{label}": value[:, c] for c, label in enumerate(names)})
    if top1 and len(names) > 1:
        result["top1"] = weighted_mean(best_class_is_right(scores, labels), sample_weights(samples, weights))
    return named_values(result, weights)


def best_class_is_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the class with the highest score is the class of a sample (GLoRIA's 5×200).

    As in GLoRIA's code, the (N, C) scores of each class are standardised over the samples first, since a class with
    high scores throughout would always win. The result of a sample thus depends on the others.

    Returns:
        (N,) 1, 0, or NaN for a sample that does not have exactly one of the classes.
    """
    spread = scores.std(0, correction=0).clamp_min(1e-12)
    chosen = ((scores - scores.mean(0)) / spread).argmax(1, keepdim=True)
    right = labels.gather(1, chosen)[:, 0] == 1
    return torch.where(((labels == 1).sum(1) == 1) & known(labels).all(1), right.double(), torch.nan)


class ZeroShotClassification(Evaluator):
    """Score each class by the prompts of a set, without training.

    A protocol names a prompt set (:mod:`medvlp.prompts`) and a scoring rule (:mod:`medvlp.scoring.prompts`). Images are
    encoded once for all classes, texts once per run.

    ========== ================================ ============= =========================================================
    protocol   prompts                          rule          further F1 and accuracy
    ========== ================================ ============= =========================================================
    default    chexpert                         softmax       –
    chexzero   chexzero                         softmax       – (thresholds by Matthews' correlation)
    g2d        g2d                              difference    ``_fixed``: positive where the disease's prompt is nearer
    maco       maco, maco_rsna, maco_siim       dot           ``_fixed`` at ½, and ``f1_weighted`` over yes and no
    medklip    medklip                          cosine        ``_medklip``, which every protocol has
    kad        kad                              cosine        ``_kad``, which every protocol has
    biovil     biovil_rsna                      biovil        ``_fixed`` at 0
    cxrclip    cxrclip_rsna, cxrclip_siim, g2d  softmax       ``_fixed`` at ½
    gloria     gloria_5x200                     best          ``top1``: accuracy of the best class, z-scored over images
    medclip    gloria_5x200_all, medclip_rsna   mean          ``top1``
    ========== ================================ ============= =========================================================

    AUROC is the primary metric, with ``classes_absent``: classes without a positive or a negative enter no mean
    (:func:`medvlp.metrics.classification.classification_measures`). ``f1`` and ``accuracy`` use thresholds chosen on
    the validation part, and are absent if the split has none; ``f1_medklip``, ``accuracy_medklip`` and ``f1_kad``,
    ``accuracy_kad`` are optimised on the test part itself, for comparison with tables that do so.

    Labels without prompts are not scored; result rows and a warning name them. Labels in ``classes`` must have prompts.
    Classes of a user's prompt file that match no label give a warning; those of the sets of medvlp, which serve several
    corpora, do not.

    A method may score images with prompts in its own way (GLoRIA's words): see
    :meth:`~medvlp.methods.base.PretrainModule.zero_shot_scores`.

    Args:
        encoder: a method's checkpoint.
        protocol: see the table.
        prompts: a set by name, or a JSON file; None for the protocol's.
        rule: a scoring rule; None for the protocol's.
        temperature: of the rules softmax and probabilities.
        classes: labels to score, in this order; None for all that have prompts.
        thresholds: criterion of the thresholds chosen on the validation part: "f1", "mcc", "youden", or "none" to
            choose none; None for the protocol's.
        own_scores: use the method's own scores, if it has them, which need a rule per prompt ("best", "mean",
            "probabilities"); None for the protocol's.
        image_size: side of the images in pixels.
        **options: of :class:`~medvlp.tasks.base.Task`: resamples, level.
    """

    task = "zero_shot"

    def __init__(
        self,
        encoder: EncoderSource | None = None,
        protocol: str = "default",
        prompts: str | None = None,
        rule: str | None = None,
        temperature: float = 1.0,
        classes: list[str] | None = None,
        thresholds: Choice | None = None,
        own_scores: bool | None = None,
        image_size: int = 224,
        **options: Any,
    ) -> None:
        settings = protocol_settings(
            "zero-shot", PROTOCOLS, protocol, rule=rule, thresholds=thresholds, own_scores=own_scores
        )
        check_rule(settings.rule)
        check_choice("thresholds", settings.thresholds, get_args(Choice))
        super().__init__(encoder, protocol=protocol, image_size=image_size, **options)
        self.protocol_settings = settings
        self.rule = settings.rule
        self.temperature = temperature
        self.requested = list(classes) if classes is not None else None
        self.choice: Choice = settings.thresholds
        self.own_scores = settings.own_scores and self.method.implements("zero_shot_scores")
        if own_scores and not self.own_scores:
            raise ConfigError(f"{self.method.name} has no zero_shot_scores of its own; leave own_scores out")
        self.given_prompts = prompts
        self.prompt_set: PromptSet | None = None
        self.table: PromptTable | None = None
        self.names: list[str] = []
        self.unscored: list[str] = []
        self._columns: list[int] = []
        self._thresholds: Tensor | None = None
        self._prepared: Any = None

    def _check_data(self) -> None:
        datamodule = self._datamodule()
        labels = list(datamodule.label_names)
        if not labels:
            raise DataError("zero-shot classification needs labels, and this data module has none: choose its classes")
        corpus = getattr(datamodule, "cache_name", "")
        settings = self.protocol_settings
        name = self.given_prompts or settings.prompts_of.get(corpus, settings.prompts)
        self.prompt_set = load_prompts(name)
        requested = labels if self.requested is None else self.requested
        for label in requested:
            check_choice("classes", label, labels)
        prompts = self.prompt_set.among(requested)
        self.unscored = [label for label in requested if label not in prompts]
        known_to = f"the prompt set {name} has {', '.join(self.prompt_set.prompts)}"
        if not prompts:
            raise ConfigError(f"none of the labels {', '.join(requested)} has prompts: {known_to}")
        if self.unscored and self.requested is not None:
            raise ConfigError(f"classes: {self.unscored[0]!r} has no prompts: {known_to}")
        if self.unscored:
            rank_zero_warn(f"without prompts in {name} and not scored: {', '.join(self.unscored)}")
        if name not in available() and (unknown := self.prompt_set.unknown(labels)):
            rank_zero_warn(f"{name} has prompts for {', '.join(unknown)}, which match no label ({', '.join(labels)})")
        self.names, self._columns = list(prompts), [labels.index(label) for label in prompts]
        self.table = PromptTable.of(prompts)
        self.table.check(self.rule)
        if self.own_scores and self.rule not in PER_PROMPT:
            raise ConfigError(f"own_scores needs one of the rules {', '.join(PER_PROMPT)}, not {self.rule}")
        rank_zero_info(
            f"{len(self.names)} classes, {len(self.table.texts)} prompts of {self.prompt_set.name} "
            f"(version {self.prompt_set.version}), rule {self.rule}"
        )

    def store(self) -> SampleStore:
        """Scores and labels of the classes that have prompts, (N, C) each."""
        return SampleStore(["score", "label"])

    @torch.no_grad()
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        return {"score": self.scores(batch["image"]), "label": batch["label"][:, self._columns]}

    def scores(self, images: Tensor) -> Tensor:
        """Compute (B, C) class scores of (B, 3, S, S) images."""
        assert self.table is not None
        if self.own_scores:
            if self._prepared is None:
                self._prepared = self.method.prepare_prompts(self.table.texts)
            similarity = self.method.zero_shot_scores(images, self._prepared)
            return prompt_scores(similarity.float(), self.table, self.rule, self.temperature)
        texts = self.texts(self.table.texts, raw=RULES[self.rule][0] == "raw")
        embed = self.method.encode_images if self.rule == "dot" else self.method.embed_image
        return class_scores(embed(images).float(), texts, self.table, self.rule, self.temperature)

    def wants_validation(self) -> bool:
        """Override: unless no thresholds are chosen."""
        return self.choice != "none"

    def validated(self, samples: Samples) -> None:
        """Choose the thresholds."""
        if self.choice != "none":
            self._thresholds = _CHOOSE[self.choice](samples["score"].cpu(), samples["label"].cpu())

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See :func:`zero_shot_measures`."""
        chosen = facts["thresholds"]
        if chosen is not None:
            chosen = torch.tensor([math.nan if t is None else t for t in chosen], dtype=torch.float64)
        return partial(
            zero_shot_measures,
            names=facts["classes"],
            thresholds=chosen,
            middle=facts["middle"],
            weighted=facts["weighted"],
            top1=facts["top1"],
        )

    def facts(self) -> dict[str, Any]:
        """Classes, prompts, rule, thresholds, metrics that the protocol adds, and labels that were not scored."""
        assert self.prompt_set is not None
        chosen = None
        if self._thresholds is not None:  # None for a class without a positive or a negative in the validation part
            chosen = [None if math.isnan(t) else t for t in self._thresholds.tolist()]
        return {
            "classes": self.names,
            "labels_without_prompts": self.unscored,
            "prompts": {"name": self.prompt_set.name, "version": self.prompt_set.version},
            "rule": self.rule,
            "own_scores": self.own_scores,
            "thresholds": chosen,
            "thresholds_from": None if chosen is None else f"validation, best {self.choice}",
            "middle": _MIDDLE.get(self.rule) if self.protocol_settings.fixed else None,
            "weighted": self.protocol_settings.weighted,
            "top1": self.protocol_settings.top1,
        }
