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
from medvlp.errors import ConfigError, DataError, NotSupportedError
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.retrieval import precision_of, precision_statistics, recall_statistics, retrieval_measures
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.prompts import load_prompts
from medvlp.scoring.prompts import PromptTable
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.evaluator import Evaluator, checked_texts

Direction = Literal["i2t", "t2i", "i2i", "p2i"]

CONVIRT_8: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Edema",
    "Fracture",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
    "No Finding",
)
"""The classes of ConVIRT's CheXpert 8×200."""

_WITH_TEXT = ("i2t", "t2i")


@dataclass(frozen=True)
class _Protocol:
    """What a protocol fixes."""

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
    """The class of each sample that has just one.

    Args:
        labels: (N, K), columns ``names``: 1 present, 0 or NaN (blank) absent, −1 uncertain.
        names: K labels.
        classes: those that are looked for, some of ``names``.
        beside: labels that may have any value beside another class; in CheXpert 5×200 "No Finding".

    Returns:
        (N,) long, the place in ``classes``; −1 for a sample with none of them, with another finding of ``names``
        besides, or with an uncertain one.

    Raises:
        ConfigError: a class that is no label.
    """
    if lost := [name for name in classes if name not in names]:
        raise ConfigError(f"there is no label {lost[0]!r} to select by; there are {', '.join(names)}")
    counted = torch.tensor([name not in beside for name in names])
    result = torch.full((len(labels),), -1)
    for place, name in enumerate(classes):
        own = labels[:, names.index(name)] == 1
        others = counted.clone()
        others[names.index(name)] = False
        values = labels[:, others]
        result[own & ((values == 0) | values.isnan()).all(1)] = place
    return result


def select_per_class(classes: Tensor, ids: Sequence[str], count: int, names: Sequence[str], seed: int = 0) -> Tensor:
    """So many samples of each class, the same whatever the order of the samples.

    Args:
        classes: (N,) long, −1 for samples of no class.
        ids: N identifiers, by whose hash is drawn.
        count: samples per class.
        names: of the classes.
        seed: of the draw.

    Returns:
        (N,) bool.

    Raises:
        DataError: a class has fewer samples; the message names it and lists all counts.
    """
    counts = {name: int((classes == place).sum()) for place, name in enumerate(names)}
    if few := [name for name in names if counts[name] < count]:
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise DataError(
            f"{len(names)}×{count} needs {count} images that show {few[0]} alone, and there are {counts[few[0]]} "
            f"(of each class: {listed}); lower per_class, or take a larger part"
        )
    keys = [hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest() for name in ids]
    kinds = classes.tolist()
    chosen = torch.zeros(len(kinds), dtype=torch.bool)
    for place in range(len(names)):
        members = sorted((keys[i], i) for i, kind in enumerate(kinds) if kind == place)
        chosen[[i for _, i in members[:count]]] = True
    return chosen


def text_groups(texts: Sequence[str]) -> Tensor:
    """(N,) long, equal for equal texts."""
    digests = (hashlib.blake2b(text.encode(), digest_size=7).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "big") for digest in digests])


def _measures(
    samples: Samples,
    weights: Tensor | None = None,
    *,
    recalls: Sequence[int],
    precisions: Sequence[int],
    asked: Sequence[int],
) -> dict[str, Tensor]:
    """Those of medvlp.metrics.retrieval, and of prompts of the classes ``asked`` where the samples have any."""
    found = retrieval_measures(samples, weights, recalls=recalls, precisions=precisions)
    if "prompts" not in samples.columns:
        return found
    members = samples["kind"] >= 0
    relevant = torch.tensor(asked)[:, None] == samples["kind"][members][None]
    values = precision_of(samples["prompts"][members].T, relevant, precisions)
    chance = relevant.float().mean(1).double().nanmean()
    for place, cut in enumerate(precisions):
        made = {f"precision@{cut}/p2i": values[:, place].double().nanmean(), f"chance/precision@{cut}/p2i": chance}
        if weights is not None:
            made = {name: torch.full((len(weights),), torch.nan, dtype=torch.float64) for name in made}
        found.update(made)
    return found


class Retrieval(Evaluator):
    """How well images find texts and images, by the cosine of their embeddings; nothing is trained.

    ============== ================= ==================================================================================
    protocol       directions        what it scores
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
    image (p2i). Every number has its chance level, ``chance/…``. Intervals resample the queries' patients and keep the
    candidates; p2i has none, since its queries are prompts.

    ``per_class`` selects so many images per class of the test part, each with that class alone among the data module's
    labels: ask it for all labels (CheXpert: ``classes: null``), not for those of the protocol alone. Without it all
    samples with one of the classes alone are candidates and queries, such as those of the split ``mgca_5x200``.

    Args:
        encoder: a method's checkpoint.
        protocol: see the table.
        directions: some of i2t, t2i, i2i, p2i; None takes the protocol's.
        classes: those of the precisions; None takes the protocol's.
        per_class: images per class; None for all there are.
        beside: labels that do not count against "that class alone"; where labels name more general findings as well
            (Lung Opacity beside Edema), those.
        prompts: the set that p2i takes its queries from: all positive prompts of each class.
        recalls: cut-offs; None takes the protocol's.
        precisions: cut-offs; None takes the protocol's.
        seed: of the selection.
        image_size: side of the images in pixels.
        **options: of :class:`~medvlp.tasks.base.Task`: resamples, level.

    Raises:
        ConfigError: an unknown protocol or direction, or nothing to score.
        NotSupportedError: the method has no text side, and a direction needs one.
    """

    task = "retrieval"
    needs_text: ClassVar[bool] = False  # image to image does not

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
        if protocol not in PROTOCOLS:
            raise ConfigError(f"retrieval has no protocol {protocol!r}; it has {', '.join(PROTOCOLS)}")
        rows = PROTOCOLS[protocol]
        super().__init__(encoder, protocol=protocol, image_size=image_size, **options)
        self.directions = tuple(rows.directions if directions is None else dict.fromkeys(directions))
        if strange := [way for way in self.directions if way not in get_args(Direction)]:
            raise ConfigError(f"directions are {', '.join(get_args(Direction))}, not {strange[0]!r}")
        self.recalls = tuple(rows.recalls if recalls is None else recalls)
        self.precisions = tuple(rows.precisions if precisions is None else precisions)
        if any(cut < 1 for cut in (*self.recalls, *self.precisions)) or (per_class is not None and per_class < 1):
            raise ConfigError("cut-offs and per_class are at least 1")
        self.classes = tuple(rows.classes if classes is None else classes)
        if not self.directions or not (self.precisions or (self.recalls and set(self.directions) & set(_WITH_TEXT))):
            raise ConfigError("nothing to score: recall needs i2t or t2i, precision needs a cut-off and a direction")
        if self.precisions and not self.classes:
            raise ConfigError("precision needs classes: name some of the data module's labels")
        if set(self.directions) - {"i2i"} and not self.method.has_text:
            asked = ", ".join(way for way in self.directions if way != "i2i")
            raise NotSupportedError(f"{self.method.name} has no text side: retrieval {asked} cannot be asked of it")
        self.per_class = per_class
        self.beside = tuple(beside)
        self.prompts = prompts
        self.draw_seed = seed
        self.counts: dict[str, int] = {}
        self._table: PromptTable | None = None

    # ---------------------------------------------------------------- set-up

    def _check_data(self) -> None:
        """Selects the images, and looks for texts and prompts."""
        datamodule = self._datamodule()
        if self.precisions and "p2i" in self.directions:
            found = load_prompts(self.prompts).among(self.classes)
            if lost := [name for name in self.classes if name not in found]:
                raise ConfigError(f"the class {lost[0]!r} has no prompts in {self.prompts}")
            self._table = PromptTable.of(found)
        for name in ("val_set", "test_set"):
            dataset = getattr(datamodule, name)
            if dataset is None or not len(dataset):
                continue
            if set(self.directions) & set(_WITH_TEXT) and not dataset.texts:
                raise ConfigError(
                    "this data module gives no texts: set data.init_args.task to pairs, or directions to [i2i]"
                )
            if self.classes:
                own = exclusive_classes(dataset.labels, list(dataset.label_names), self.classes, self.beside)
                self.counts = {c: int((own == place).sum()) for place, c in enumerate(self.classes)}
                if name == "test_set" and self.per_class is not None:
                    keep = select_per_class(own, dataset.ids, self.per_class, self.classes, self.draw_seed)
                    datamodule.test_set = dataset.subset(keep.numpy())
                    self.counts = dict.fromkeys(self.classes, self.per_class)
                elif name == "test_set":
                    if empty := [c for c, n in self.counts.items() if not n]:
                        rank_zero_warn(f"no image shows {', '.join(empty)} alone: there is nothing of it to find")
                    rank_zero_info(
                        "images of one class alone: " + ", ".join(f"{c} {n}" for c, n in self.counts.items())
                    )

    # ---------------------------------------------------------------- embeddings

    def store(self) -> SampleStore:
        """Embeddings; groups of equal texts; classes."""
        names = ["image"]
        if set(self.directions) & set(_WITH_TEXT):
            names += ["text", "same_text"]
        return SampleStore([*names, "kind"])

    @torch.no_grad()
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        found: dict[str, Any] = {"image": self.method.embed_image(batch["image"]).float()}
        if set(self.directions) & set(_WITH_TEXT):
            texts = checked_texts(batch["text"], "text")
            found["text"] = self.texts(texts)
            found["same_text"] = text_groups(texts).to(self.device)
        kind = torch.full((len(batch["index"]),), -1)
        if self.classes:
            names = list(self._datamodule().label_names)
            kind = exclusive_classes(batch["label"].cpu(), names, self.classes, self.beside)
        found["kind"] = kind.to(self.device)
        return found

    def _gathered(self, part: str) -> Samples:
        """The statistics of each query, of the embeddings of the whole part."""
        return self.ranked(super()._gathered(part))

    def ranked(self, samples: Samples) -> Samples:
        """From embeddings to what each query found.

        Args:
            samples: the columns of :meth:`store`.

        Returns:
            ``recall_<way>`` and ``precision_<way>`` (N, K) with their chance, as
            :func:`medvlp.metrics.retrieval.retrieval_measures` takes them; ``kind`` (N,), the class of each; of p2i
            ``prompts`` (N, P), cosines with the prompts, NaN for images of no class.
        """
        image, kind = samples["image"], samples["kind"]
        sides: dict[str, tuple[Tensor, Tensor]] = {"i2i": (image, image)}
        found: dict[str, Tensor] = {}
        if "text" in samples.columns:
            text = samples["text"]
            sides |= {"i2t": (image, text), "t2i": (text, image)}
            if self.recalls:
                for way in (way for way in self.directions if way in _WITH_TEXT):
                    group = samples["same_text"]
                    found[f"recall_{way}"], found[f"chance_recall_{way}"] = recall_statistics(
                        *sides[way], self.recalls, group, group
                    )
        if self.precisions:
            members = (kind >= 0).nonzero()[:, 0]  # others are neither queries nor candidates
            for way in (way for way in self.directions if way != "p2i"):
                queries, keys = (side[members] for side in sides[way])
                itself = torch.arange(len(members)) if way == "i2i" else None
                values, chance = precision_statistics(
                    queries, keys, kind[members], kind[members], self.precisions, itself
                )
                rows = torch.full((len(kind), len(self.precisions)), torch.nan)
                level = torch.full((len(kind),), torch.nan)
                rows[members], level[members] = values, chance
                found[f"precision_{way}"], found[f"chance_precision_{way}"] = rows, level
            if self._table is not None:
                found["prompts"] = torch.full((len(kind), len(self._asked())), torch.nan)
                found["prompts"][members] = self._prompt_cosines(image[members])
        return Samples(samples.index, {**found, "kind": kind})

    def _asked(self) -> list[int]:
        """The class of each query prompt."""
        assert self._table is not None
        return [place for place, side in enumerate(self._table.positive) for _ in side]

    def _prompt_cosines(self, images: Tensor) -> Tensor:
        """(n, d) images to (n, P) cosines with the query prompts."""
        assert self._table is not None
        texts = self.texts([self._table.texts[i] for side in self._table.positive for i in side]).cpu()
        return (F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T).T

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See the class; p2i has a value, and NaN in every resample."""
        return partial(
            _measures,
            recalls=tuple(facts["recalls"]),
            precisions=tuple(facts["precisions"]),
            asked=tuple(facts["prompt_classes"]),
        )

    def facts(self) -> dict[str, Any]:
        """Classes and how many images show each alone, the prompts, and the cut-offs."""
        made = None
        if self._table is not None:
            prompts = load_prompts(self.prompts)
            made = {"name": prompts.name, "version": prompts.version, "queries": sum(map(len, self._table.positive))}
        return {
            "classes": list(self.classes),
            "images_of_class": self.counts,
            "prompts": made,
            "prompt_classes": [] if self._table is None else self._asked(),
            "recalls": list(self.recalls),
            "precisions": list(self.precisions),
        }
