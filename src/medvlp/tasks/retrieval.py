"""Retrieval among held-out images and texts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvlp.datasets.labels import CHEXPERT_5
from medvlp.errors import ConfigError, DataError, NotSupportedError, check_choice
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.retrieval import precision_of, precision_statistics, recall_columns, retrieval_measures, text_groups
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.prompts import load_prompts
from medvlp.scoring.prompts import PromptTable
from medvlp.tasks.base import protocol_settings
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.evaluator import Evaluator, checked_texts

Direction = Literal["i2t", "t2i", "i2i", "p2i"]

CONVIRT_8: tuple[str, ...] = (
    *("Atelectasis", "Cardiomegaly", "Edema", "Fracture"),
    *("Pleural Effusion", "Pneumonia", "Pneumothorax", "No Finding"),
)
"""The classes of ConVIRT's CheXpert 8×200."""

_WITH_TEXT = ("i2t", "t2i")


@dataclass(frozen=True)
class _Protocol:
    directions: tuple[Direction, ...]
    recalls: tuple[int, ...] = ()
    precisions: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()


PROTOCOLS: dict[str, _Protocol] = {
    "pairs": _Protocol(("i2t", "t2i"), recalls=(1, 5, 10)),
    "gloria_5x200": _Protocol(("i2t", "t2i", "i2i"), precisions=(5, 10, 100), classes=CHEXPERT_5),
    "convirt_8x200": _Protocol(("i2i", "p2i"), precisions=(5, 10, 50), classes=CONVIRT_8),
}
"""Protocols by name; see :class:`Retrieval`."""


def exclusive_classes(
    labels: Tensor, names: Sequence[str], classes: Sequence[str], beside: Sequence[str] = ("No Finding",)
) -> Tensor:
    """Find the class of each sample that shows exactly one: (N,) long, the index in ``classes``, or −1.

    Samples with none of the classes, or with another finding of ``names`` that is positive or uncertain, have −1. The
    (N, K) labels are 1 present, 0 or NaN (blank) absent, −1 uncertain; those in ``beside`` may have any value ("No
    Finding" in CheXpert 5×200).
    """
    for name in classes:
        check_choice("label", name, names)
    result = torch.full((len(labels),), -1)
    for i, name in enumerate(classes):
        others = labels[:, [k for k, other in enumerate(names) if other != name and other not in beside]]
        positive = labels[:, names.index(name)] == 1
        result[positive & ((others == 0) | others.isnan()).all(1)] = i
    return result


def select_per_class(classes: Tensor, ids: Sequence[str], count: int, names: Sequence[str], seed: int = 0) -> Tensor:
    """Draw ``count`` samples of each class by a hash of their ids, so that the order of the samples does not matter.

    ``classes`` is (N,) long, −1 for samples of no class. Returns (N,) bool.
    """
    counts = {name: int((classes == i).sum()) for i, name in enumerate(names)}
    if few := [name for name in names if counts[name] < count]:
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise DataError(
            f"{len(names)}×{count} needs {count} images that show {few[0]} alone, and there are {counts[few[0]]} "
            f"(of each class: {listed}); lower per_class, or take a larger part"
        )
    keys = [hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest() for name in ids]
    chosen = torch.zeros(len(keys), dtype=torch.bool)
    for c in range(len(names)):
        members = (classes == c).nonzero()[:, 0].tolist()
        chosen[sorted(members, key=keys.__getitem__)[:count]] = True
    return chosen


def _measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    recalls: Sequence[int],
    precisions: Sequence[int],
    prompt_classes: Sequence[int],
) -> dict[str, Tensor]:
    """Add the metrics of p2i if the samples have cosines with prompts of the classes."""
    result = retrieval_measures(samples, weights, recalls=recalls, precisions=precisions)
    if "prompts" not in samples.columns:
        return result
    members = samples["kind"] >= 0
    relevant = torch.tensor(prompt_classes)[:, None] == samples["kind"][members][None]
    values = precision_of(samples["prompts"][members].T, relevant, precisions)
    chance = relevant.float().mean(1).double().nanmean()
    for i, cut in enumerate(precisions):
        of_cut = {f"precision@{cut}/p2i": values[:, i].double().nanmean(), f"chance/precision@{cut}/p2i": chance}
        if weights is not None:
            of_cut = {name: torch.full((len(weights),), torch.nan, dtype=torch.float64) for name in of_cut}
        result.update(of_cut)
    return result


class Retrieval(Evaluator):
    """Retrieve texts and images by the cosine of their embeddings, without training.

    ============== ================= ==================================================================================
    protocol       directions        metrics
    ============== ================= ==================================================================================
    pairs          i2t, t2i          recall at 1, 5, 10 of the own report among those of the test part; reports of equal
                                     text are one (CXR-CLIP)
    gloria_5x200   i2t, t2i, i2i     precision at 5, 10, 100: share of the retrieved that have the query's class; n
                                     images per class of five, each with that finding alone. Cosines of whole images and
                                     reports; GLoRIA's own score adds words
    convirt_8x200  i2i, p2i          precision at 5, 10, 50, of eight classes. Queries of p2i are the prompts of the
                                     classes (ConVIRT's are sentences of experts), of i2i every image
    ============== ================= ==================================================================================

    Directions are image to text (i2t), text to image (t2i), image to image without itself (i2i) and class prompt to
    image (p2i). Every metric has its chance level, ``chance/…``. Intervals resample the queries' patients and keep the
    candidates; p2i has no intervals, since its queries are prompts.

    ``per_class`` selects that many images per class of the test part, each with no other class among the data module's
    labels; the data module must therefore have all labels (CheXpert: ``classes: null``), not only the protocol's.
    Without it, all samples with exactly one of the classes are candidates and queries, as in the split ``mgca_5x200``.

    Args:
        encoder: a method's checkpoint.
        protocol: see the table.
        directions: some of i2t, t2i, i2i, p2i; None for the protocol's.
        classes: of the precisions; None for the protocol's.
        per_class: images per class; None for all.
        beside: labels that may be positive beside the class, such as more general findings (Lung Opacity beside Edema).
        prompts: the set of p2i's queries: all positive prompts of each class.
        recalls: cut-offs; None for the protocol's.
        precisions: cut-offs; None for the protocol's.
        seed: of the selection.
        image_size: side of the images in pixels.
        **options: of :class:`~medvlp.tasks.base.Task`: resamples, level.
    """

    task = "retrieval"
    needs_text: ClassVar[bool] = False  # not for image to image

    def __init__(
        self,
        encoder: EncoderSource | None = None,
        protocol: str = "pairs",
        directions: list[Direction] | None = None,
        classes: list[str] | None = None,
        per_class: int | None = None,
        beside: Sequence[str] = ("No Finding",),
        prompts: str = "chexpert",
        recalls: list[int] | None = None,
        precisions: list[int] | None = None,
        seed: int = 0,
        image_size: int = 224,
        **options: Any,
    ) -> None:
        settings = protocol_settings(
            "retrieval",
            PROTOCOLS,
            protocol,
            directions=directions,
            recalls=recalls,
            precisions=precisions,
            classes=classes,
        )
        super().__init__(encoder, protocol=protocol, image_size=image_size, **options)
        self.directions = tuple(dict.fromkeys(settings.directions))
        for way in self.directions:
            check_choice("direction", way, get_args(Direction))
        self.recalls, self.precisions = tuple(settings.recalls), tuple(settings.precisions)
        self.classes = tuple(settings.classes)
        self.text_directions = tuple(way for way in self.directions if way in _WITH_TEXT)
        if not self.directions or not (self.precisions or (self.recalls and self.text_directions)):
            raise ConfigError("nothing to score: recall needs i2t or t2i, precision needs a cut-off and a direction")
        if self.precisions and not self.classes:
            raise ConfigError("precision needs classes: name some of the data module's labels")
        with_texts = ", ".join(way for way in self.directions if way != "i2i")
        if with_texts and not self.method.has_text:
            raise NotSupportedError(
                f"{self.method.name} has no text encoder and does not support retrieval {with_texts}"
            )
        self.per_class = per_class
        self.beside = tuple(beside)
        self.prompts = prompts
        self.draw_seed = seed
        self.counts: dict[str, int] = {}
        self._table: PromptTable | None = None

    def _check_data(self) -> None:
        datamodule = self._datamodule()
        if self.precisions and "p2i" in self.directions:
            prompts = load_prompts(self.prompts).among(self.classes)
            if missing := [name for name in self.classes if name not in prompts]:
                raise ConfigError(f"the class {missing[0]!r} has no prompts in {self.prompts}")
            self._table = PromptTable.of(prompts)
        for name in ("val_set", "test_set"):
            dataset = getattr(datamodule, name)
            if dataset is None or not len(dataset):
                continue
            if self.text_directions and not dataset.texts:
                raise ConfigError(
                    "this data module gives no texts: set data.init_args.task to pairs, or directions to [i2i]"
                )
            if self.classes:
                self._select(datamodule, dataset, name == "test_set")

    def _select(self, datamodule: Any, dataset: Any, test: bool) -> None:
        """Count the images of exactly one class, and of the test part keep ``per_class`` of each."""
        kinds = exclusive_classes(dataset.labels, list(dataset.label_names), self.classes, self.beside)
        self.counts = {name: int((kinds == i).sum()) for i, name in enumerate(self.classes)}
        if not test:
            return
        if self.per_class is not None:
            keep = select_per_class(kinds, dataset.ids, self.per_class, self.classes, self.draw_seed)
            datamodule.select_test(keep.numpy())
            self.counts = dict.fromkeys(self.classes, self.per_class)
            return
        if empty := [name for name, count in self.counts.items() if not count]:
            rank_zero_warn(f"no image shows {', '.join(empty)} alone: nothing to retrieve for it")
        listed = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        rank_zero_info(f"images of exactly one class: {listed}")

    def store(self) -> SampleStore:
        """Embeddings; groups of equal texts; classes."""
        return SampleStore(["image", *(["text", "same_text"] if self.text_directions else []), "kind"])

    @torch.no_grad()
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        columns: dict[str, Any] = {"image": self.method.embed_image(batch["image"]).float()}
        if self.text_directions:
            texts = checked_texts(batch["text"], "text")
            columns["text"] = self.texts(texts)
            columns["same_text"] = text_groups(texts).to(self.device)
        kind = torch.full((len(batch["index"]),), -1)
        if self.classes:
            names = list(self._datamodule().label_names)
            kind = exclusive_classes(batch["label"].cpu(), names, self.classes, self.beside)
        columns["kind"] = kind.to(self.device)
        return columns

    def _gathered(self, part: str) -> Samples:
        """Override: the statistics of each query among the whole part, and ``kind`` (N,), its class.

        Columns are those of :func:`medvlp.metrics.retrieval.retrieval_measures`, and of p2i ``prompts`` (N, P), cosines
        with the prompts, NaN for images of no class.
        """
        samples = super()._gathered(part)
        image, kind = samples["image"], samples["kind"]
        sides: dict[str, tuple[Tensor, Tensor]] = {"i2i": (image, image)}
        columns: dict[str, Tensor] = {}
        if self.text_directions:
            text = samples["text"]
            sides |= {"i2t": (image, text), "t2i": (text, image)}
            if self.recalls:
                columns |= recall_columns(image, text, samples["same_text"], self.recalls, self.text_directions)
        if self.precisions:
            members = (kind >= 0).nonzero()[:, 0]  # the others are neither queries nor candidates

            def spread(values: Tensor) -> Tensor:
                rows = torch.full((len(kind), *values.shape[1:]), torch.nan)
                rows[members] = values
                return rows

            kinds = kind[members]
            for way in (way for way in self.directions if way != "p2i"):
                queries, keys = (side[members] for side in sides[way])
                itself = torch.arange(len(members)) if way == "i2i" else None
                values, chance = precision_statistics(queries, keys, kinds, kinds, self.precisions, itself)
                columns |= {f"precision_{way}": spread(values), f"chance_precision_{way}": spread(chance)}
            if self._table is not None:
                columns["prompts"] = spread(self._prompt_cosines(image[members]))
        return Samples(samples.index, {**columns, "kind": kind})

    def _prompt_classes(self) -> list[int]:
        """The class of each query prompt."""
        return [i for i, side in enumerate(self._table.positive) for _ in side] if self._table is not None else []

    def _prompt_cosines(self, images: Tensor) -> Tensor:
        """Compute (n, P) cosines of (n, d) images with the query prompts."""
        assert self._table is not None
        texts = self.texts([self._table.texts[i] for side in self._table.positive for i in side]).cpu()
        return (F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T).T

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See the class; p2i is NaN in every resample."""
        return partial(
            _measures,
            recalls=tuple(facts["recalls"]),
            precisions=tuple(facts["precisions"]),
            prompt_classes=tuple(facts["prompt_classes"]),
        )

    def facts(self) -> dict[str, Any]:
        """Classes and their numbers of images, prompts, cut-offs."""
        prompts = None
        if self._table is not None:
            loaded = load_prompts(self.prompts)
            prompts = {"name": loaded.name, "version": loaded.version, "queries": len(self._prompt_classes())}
        return {
            "classes": list(self.classes),
            "images_of_class": self.counts,
            "prompts": prompts,
            "prompt_classes": self._prompt_classes(),
            "recalls": list(self.recalls),
            "precisions": list(self.precisions),
        }
