"""Zero-shot classification: images against prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvlp.errors import ConfigError, DataError
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.classification import (
    best_f1_thresholds,
    best_mcc_thresholds,
    classification_measures,
    youden_thresholds,
)
from medvlp.metrics.curves import known
from medvlp.metrics.samples import Samples, SampleStore, weighted_mean
from medvlp.prompts import PromptSet, available, load_prompts
from medvlp.scoring.prompts import RULES, PromptTable, class_scores, prompt_scores
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.evaluator import Evaluator

Choice = Literal["f1", "mcc", "youden", "none"]

_CHOOSE = {"f1": best_f1_thresholds, "mcc": best_mcc_thresholds, "youden": youden_thresholds}
_MIDDLE = {"softmax": 0.5, "dot": 0.5, "probabilities": 0.5, "class_sigmoid": 0.5, "difference": 0.0, "biovil": 0.0}
"""The threshold at which a rule prefers the positive prompts to the negative ones."""


@dataclass(frozen=True)
class _Protocol:
    """What a protocol fixes."""

    prompts: str
    rule: str
    thresholds: Choice = "f1"
    prompts_of: tuple[tuple[str, str], ...] = ()  # corpora with prompts of their own
    fixed: bool = False  # F1 and accuracy where the positive prompts win
    weighted: bool = False  # MaCo's F1
    top1: bool = False  # accuracy of the best class
    own_scores: bool = False


PROTOCOLS: dict[str, _Protocol] = {
    "default": _Protocol("chexpert", "softmax"),
    "chexzero": _Protocol("chexzero", "softmax", thresholds="mcc"),
    "g2d": _Protocol("g2d", "difference", fixed=True),
    "maco": _Protocol(
        "maco",
        "dot",
        prompts_of=(("rsna", "maco_rsna"), ("siim", "maco_siim")),
        fixed=True,
        weighted=True,
    ),
    "medklip": _Protocol("medklip", "cosine"),
    "kad": _Protocol("kad", "cosine"),
    "biovil": _Protocol("biovil_rsna", "biovil", fixed=True),
    "cxrclip": _Protocol("g2d", "softmax", prompts_of=(("rsna", "cxrclip_rsna"), ("siim", "cxrclip_siim")), fixed=True),
    "gloria": _Protocol("gloria_5x200", "best", top1=True, own_scores=True),
    "medclip": _Protocol("gloria_5x200_all", "mean", prompts_of=(("rsna", "medclip_rsna"),), top1=True),
}
"""Protocols by name; see :class:`ZeroShotClassification`."""


def decisions(
    decided: Tensor, labels: Tensor, weights: Tensor | None = None, weighted: bool = False
) -> dict[str, Tensor]:
    """F1 and accuracy of decisions, per class.

    Args:
        decided: (N, C) bool.
        labels: (N, C): 1, 0, or unknown.
        weights: (R, N), how often each sample counts; None: once.
        weighted: also MaCo's F1, the mean of those of the positives and of the negatives weighted by their numbers.

    Returns:
        ``f1``, ``accuracy`` and perhaps ``f1_weighted``, each (R, C) float64, R = 1 without weights; NaN for a class
        without both a positive and a negative.
    """
    usable, positive = known(labels), labels == 1
    w = (torch.ones(1, len(labels)) if weights is None else weights).double()

    def count(rows: Tensor) -> Tensor:
        return w @ rows.double()

    hits, chosen, present, total = (count(rows) for rows in (decided & positive, decided & usable, positive, usable))
    absent = total - present
    rejected = absent - (chosen - hits)  # negatives that were not chosen
    defined = (present > 0) & (absent > 0)
    f1 = 2 * hits / (chosen + present)
    found = {"f1": f1, "accuracy": (hits + rejected) / total}
    if weighted:
        other = 2 * rejected / (total - chosen + absent).clamp_min(1e-300)
        found["f1_weighted"] = (present * f1 + absent * other) / total
    return {name: torch.where(defined, value, torch.nan) for name, value in found.items()}


def _thresholds(chosen: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if t is None else t for t in chosen], dtype=torch.float64)


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
    """The metrics of :class:`ZeroShotClassification`.

    Args:
        samples: ``score`` and ``label``, (N, C) each.
        weights: (R, N) how often each sample counts; None: once.
        names: C labels.
        thresholds: (C,) of ``f1`` and ``accuracy``, NaN leaves a class out; None: neither.
        middle: score from which the positive prompts win, for the metrics ``_fixed``; None: none of these.
        weighted: also ``f1_weighted``, with ``middle``.
        top1: also accuracy of the best class, of at least two.

    Returns:
        Name to scalar, or to (R,) with weights; float64.
    """
    scores, labels = samples["score"], samples["label"]
    found = classification_measures(samples, weights, names=names, thresholds=thresholds)
    if middle is not None:
        for own, value in decisions(scores >= middle, labels, weights, weighted).items():
            name = own if own == "f1_weighted" else f"{own}_fixed"
            found[name] = value.nanmean(1)
            if len(names) > 1:
                found.update({f"{name}/{label}": value[:, c] for c, label in enumerate(names)})
    if top1 and len(names) > 1:
        right = best_class_is_right(scores, labels)
        found["top1"] = weighted_mean(right, torch.ones(1, len(right)) if weights is None else weights)
    return found if weights is not None else {name: value.reshape(()) for name, value in found.items()}


def best_class_is_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether the class with the highest score is the one that a sample has (GLoRIA's 5×200).

    Scores are standardised over the samples per class first, as GLoRIA's code does: a class that scores high with
    everything would win everywhere. So the result of a sample depends on the others.

    Args:
        scores: (N, C).
        labels: (N, C).

    Returns:
        (N,) 1, 0, or NaN for a sample that does not have exactly one of the classes.
    """
    spread = scores.std(0, correction=0).clamp_min(1e-12)
    chosen = ((scores - scores.mean(0)) / spread).argmax(1, keepdim=True)
    right = labels.gather(1, chosen)[:, 0] == 1
    return torch.where(((labels == 1).sum(1) == 1) & known(labels).all(1), right.double(), torch.nan)


class ZeroShotClassification(Evaluator):
    """How likely each class is, by the prompts of a set; nothing is trained.

    Images are encoded once for all classes and texts once in a run. What is said of a class is set by a prompt set
    (:mod:`medvlp.prompts`) and a scoring rule (:mod:`medvlp.scoring.prompts`); a protocol names both:

    ========== ================================ ============= =========================================================
    protocol   prompts                          rule          F1 and accuracy besides the honest ones
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
    (:func:`medvlp.metrics.classification.classification_measures`). ``f1`` and ``accuracy`` are at thresholds chosen on
    the validation part, and absent where the split has none; ``f1_medklip``, ``accuracy_medklip`` and ``f1_kad``,
    ``accuracy_kad`` are optimised on the test part itself, for comparison with tables that do so.

    Labels without prompts are not scored; result rows and a warning name them. A label that ``classes`` names must
    have prompts. Of a prompt file of one's own, classes that no label has are warned of; of the sets that come with
    medvlp they are not, since a set serves several corpora.

    A method may score images with prompts in its own way (GLoRIA's words): see
    :meth:`~medvlp.methods.base.PretrainModule.zero_shot_scores`.

    Args:
        encoder: a method's checkpoint.
        protocol: see the table.
        prompts: a set by name, or a JSON file; None takes the protocol's.
        rule: a scoring rule; None takes the protocol's.
        temperature: of the rules softmax and probabilities.
        classes: labels to score, in this order; None scores all that have prompts.
        thresholds: what the thresholds that are chosen on the validation part maximise: "f1", "mcc", "youden", or
            "none" to choose none; None takes the protocol's.
        own_scores: take the method's own scores where it has them, which need a rule per prompt ("best", "mean",
            "probabilities"); None takes the protocol's.
        image_size: side of the images in pixels.
        **options: of :class:`~medvlp.tasks.base.Task`: resamples, level.

    Raises:
        ConfigError: an unknown protocol, rule or choice, or a rule that does not fit the prompts.
        NotSupportedError: the method has no text side.
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
        if protocol not in PROTOCOLS:
            raise ConfigError(f"zero-shot classification has no protocol {protocol!r}; it has {', '.join(PROTOCOLS)}")
        rows = PROTOCOLS[protocol]
        if rule is not None and rule not in RULES:
            raise ConfigError(f"there is no scoring rule {rule!r}; there are {', '.join(RULES)}")
        if thresholds not in (None, "none", *_CHOOSE):
            raise ConfigError(f"thresholds are chosen by {', '.join(_CHOOSE)} or none, not {thresholds!r}")
        if temperature <= 0:
            raise ConfigError(f"temperature must be positive, not {temperature}")
        super().__init__(encoder, protocol=protocol, image_size=image_size, **options)
        self.rules = rows
        self.rule = rule or rows.rule
        self.temperature = temperature
        self.wanted = list(classes) if classes is not None else None
        self.choice: Choice = thresholds or rows.thresholds
        own = rows.own_scores if own_scores is None else own_scores
        self.own_scores = own and self.method.implements("zero_shot_scores")
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

    # ---------------------------------------------------------------- set-up

    def _check_data(self) -> None:
        """Finds the prompts of the data module's labels."""
        datamodule = self._datamodule()
        labels = list(datamodule.label_names)
        if not labels:
            raise DataError("zero-shot classification needs labels, and this data module has none: choose its classes")
        corpus = getattr(datamodule, "cache_name", "")
        name = self.given_prompts or dict(self.rules.prompts_of).get(corpus, self.rules.prompts)
        self.prompt_set = load_prompts(name)
        wanted = labels if self.wanted is None else self.wanted
        if strange := [c for c in wanted if c not in labels]:
            raise ConfigError(f"classes: this data has no label {strange[0]!r}; it has {', '.join(labels)}")
        found = self.prompt_set.among(wanted)
        self.unscored = [label for label in wanted if label not in found]
        known_to = f"the prompt set {name} has {', '.join(self.prompt_set.prompts)}"
        if not found:
            raise ConfigError(f"none of the labels {', '.join(wanted)} has prompts: {known_to}")
        if self.unscored and self.wanted is not None:
            raise ConfigError(f"classes: {self.unscored[0]!r} has no prompts: {known_to}")
        if self.unscored:
            rank_zero_warn(f"without prompts in {name} and not scored: {', '.join(self.unscored)}")
        if name not in available() and (unknown := self.prompt_set.unknown(labels)):
            rank_zero_warn(
                f"{name} has prompts for {', '.join(unknown)}, and no label is called so; there are {', '.join(labels)}"
            )
        self.names, self._columns = list(found), [labels.index(label) for label in found]
        self.table = PromptTable.of(found)
        self.table.check(self.rule)
        if self.own_scores and self.rule not in ("best", "mean", "probabilities"):
            raise ConfigError(f"own_scores go with the rules best, mean and probabilities, not with {self.rule}")
        rank_zero_info(
            f"{len(self.names)} classes, {len(self.table.texts)} prompts of {self.prompt_set.name} "
            f"(version {self.prompt_set.version}), rule {self.rule}"
        )

    # ---------------------------------------------------------------- scores

    def store(self) -> SampleStore:
        """Scores and labels of the classes that have prompts, (N, C) each."""
        return SampleStore(["score", "label"])

    @torch.no_grad()
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        return {"score": self.scores(batch["image"]), "label": batch["label"][:, self._columns]}

    def scores(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) images to (B, C) class scores."""
        assert self.table is not None
        if self.own_scores:
            if self._prepared is None:
                self._prepared = self.method.prepare_prompts(self.table.texts)
            similarity = self.method.zero_shot_scores(images, self._prepared)
            return prompt_scores(similarity.float(), self.table, self.rule, self.temperature)
        texts = self.texts(self.table.texts, raw=RULES[self.rule][0] == "raw")
        made = self.method.encode_images(images) if self.rule == "dot" else self.method.embed_image(images)
        return class_scores(made.float(), texts, self.table, self.rule, self.temperature)

    def wants_validation(self) -> bool:
        """Unless no thresholds are chosen."""
        return self.choice != "none"

    def validated(self, samples: Samples) -> None:
        """Chooses the thresholds."""
        if self.choice != "none":
            self._thresholds = _CHOOSE[self.choice](samples["score"].cpu(), samples["label"].cpu())

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See :func:`zero_shot_measures`."""
        chosen = facts["thresholds"]
        return partial(
            zero_shot_measures,
            names=facts["classes"],
            thresholds=None if chosen is None else _thresholds(chosen),
            middle=facts["middle"],
            weighted=facts["weighted"],
            top1=facts["top1"],
        )

    def facts(self) -> dict[str, Any]:
        """Prompts, rule, thresholds, which metrics the protocol adds, and the labels that were not scored."""
        assert self.prompt_set is not None
        chosen = None
        if self._thresholds is not None:  # none for a class without both answers in the validation part
            chosen = [None if math.isnan(t) else t for t in self._thresholds.tolist()]
        return {
            "classes": self.names,
            "labels_without_prompts": self.unscored,
            "prompts": {"name": self.prompt_set.name, "version": self.prompt_set.version},
            "rule": self.rule,
            "own_scores": self.own_scores,
            "thresholds": chosen,
            "thresholds_from": None if chosen is None else f"validation, best {self.choice}",
            "middle": _MIDDLE.get(self.rule) if self.rules.fixed else None,
            "weighted": self.rules.weighted,
            "top1": self.rules.top1,
        }
