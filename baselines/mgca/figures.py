"""MGCA's figures: regions of words (the paper's Figure 3), t-SNE and clusters (Figure 4), images around prototypes.

In a run: the callback :class:`MGCAFigures`, with ``medvlp predict``. In a notebook: :func:`study_words`,
:func:`words_figure`, :func:`embedding_figure` and :func:`prototype_figure`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import matplotlib
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from medvlp_baselines.mgca.module import MGCA, stretch
from torch import Tensor

from medvlp import viz
from medvlp.errors import ConfigError
from medvlp.losses.tokens import entries

_COLOURS = 20
_THUMBNAIL = 128
_FEWEST = 5
"""Fewer points than this have no t-SNE worth drawing."""


class StudyWords(NamedTuple):
    """One study and where words of its report look.

    Attributes:
        image: (3, S, S), as the model saw it.
        regions: word → (S, S) in [0, 1].
        text: the report.
        title: the study's id.
    """

    image: np.ndarray
    regions: dict[str, np.ndarray]
    text: str
    title: str


@torch.no_grad()
def study_words(model: MGCA, batch: dict[str, Any], count: int = 4, wanted: Sequence[str] = ()) -> list[StudyWords]:
    """Finds the regions of words, study by study.

    Args:
        model: with token alignment and a tokenizer.
        batch: on the model's device.
        count: words per study: the different ones that [CLS] attends to most, of three letters or more.
        wanted: words that come first where a report has them, in this order; case does not matter.

    Returns:
        One entry per study; a report without such words has no regions.

    Raises:
        ConfigError: a model without token alignment or tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigError("the model has no tokenizer, which the words are read with: call attach_tokenizer()")
    outputs = model(batch)
    regions = stretch(model.word_regions(outputs).float(), batch["image"].shape[-1]).cpu().numpy()
    attention = outputs["word_attention"].masked_fill(outputs["padding"], 0).cpu().numpy()
    padding = outputs["padding"].cpu().numpy()
    place = entries(batch["word_groups"], batch["attention_mask"]).index.cpu().numpy()
    ids = batch["input_ids"].cpu().numpy()
    images = batch["image"].float().cpu().numpy()
    special = set(model.tokenizer.all_special_ids)  # [SEP], and [UNK], which is no word
    ranks = {word.lower(): rank for rank, word in enumerate(wanted)}
    made = []
    for study in range(len(ids)):
        found: dict[str, int] = {}
        for entry in np.flatnonzero(~padding[study])[np.argsort(-attention[study][~padding[study]], kind="stable")]:
            # entry 0 is [CLS], which the words do not count
            pieces = ids[study][place[study] == entry + 1].tolist()
            word = model.tokenizer.decode(pieces).strip()
            if sum(letter.isalpha() for letter in word) >= 3 and special.isdisjoint(pieces):
                found.setdefault(word, int(entry))
        order = sorted(found, key=lambda word: ranks.get(word.lower(), len(ranks)))  # stable
        chosen = {word: regions[study, found[word]] for word in order[:count]}
        made.append(StudyWords(images[study], chosen, batch["text"][study], str(batch["id"][study])[:24]))
    return made


def words_figure(study: StudyWords) -> Figure:
    """A radiograph, the region of each word laid over it, and the report.

    Args:
        study: of :func:`study_words`.

    Returns:
        A matplotlib figure, not shown; save it with :func:`medvlp.viz.save`.
    """
    maps = {word: [region] for word, region in study.regions.items()}
    return viz.study_figure([study.image], maps, [study.text], [study.title])


def _scatter(axis: Axes, points: np.ndarray, groups: Sequence[str | None], title: str) -> None:
    counts = Counter(group for group in groups if group is not None)
    shown = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_COLOURS]]
    rest = np.array([group not in shown for group in groups])
    axis.scatter(
        points[rest, 0], points[rest, 1], s=6, color="0.8", linewidths=0, label="others" if rest.any() else None
    )
    palette = matplotlib.colormaps["tab20"]
    for number, name in enumerate(shown):
        here = np.array([group == name for group in groups])
        axis.scatter(
            points[here, 0], points[here, 1], s=8, color=palette(number), linewidths=0, label=f"{name} ({counts[name]})"
        )
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def embedding_figure(
    embeddings: np.ndarray, truth: Sequence[str | None], clusters: Sequence[int] | None = None, seed: int = 0
) -> Figure:
    """t-SNE of image embeddings, coloured by finding and by prototype; the 20 largest groups have colours.

    Args:
        embeddings: (N, d), L2-normalised.
        truth: N findings; None for an image without one, which is grey.
        clusters: N numbers of prototypes; None leaves that panel out.
        seed: of t-SNE.

    Returns:
        A matplotlib figure, not shown.

    Raises:
        ConfigError: fewer than five embeddings.
    """
    from sklearn.manifold import TSNE

    count = len(embeddings)
    if count < _FEWEST:
        raise ConfigError(f"t-SNE of {count} images shows nothing; give at least {_FEWEST}")
    values = np.ascontiguousarray(embeddings, dtype=np.float32)
    # The start from principal components divides by their spread.
    start = "pca" if float(np.ptp(values, axis=0).max()) > 1e-6 else "random"
    points = TSNE(perplexity=min(30.0, (count - 1) / 3), init=start, random_state=seed).fit_transform(values)
    panels = 1 if clusters is None else 2
    figure = Figure(figsize=(6.2 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _scatter(axes[0], points, truth, f"{count} images by finding")
    if clusters is not None:
        _scatter(axes[1], points, [f"prototype {number}" for number in clusters], "by nearest prototype")
    return figure


def prototype_figure(
    thumbnails: Sequence[np.ndarray],
    clusters: np.ndarray,
    scores: np.ndarray,
    truth: Sequence[str | None],
    prototypes: int = 6,
    nearest: int = 5,
) -> Figure:
    """The images nearest to each of the prototypes that most images belong to, a row each.

    Args:
        thumbnails: N images, uint8 (h, w, 3).
        clusters: (N,) number of each image's prototype.
        scores: (N,) its cosine with that prototype.
        truth: N findings, None where an image has none.
        prototypes: rows.
        nearest: images in a row.

    Returns:
        A matplotlib figure, not shown.

    Raises:
        ConfigError: no images.
    """
    if not len(thumbnails):
        raise ConfigError("no images to show around the prototypes")
    pictures: list[np.ndarray | None] = []
    captions: list[str] = []
    numbers, sizes = np.unique(clusters, return_counts=True)
    for which in np.lexsort((numbers, -sizes))[:prototypes]:
        members = np.flatnonzero(clusters == numbers[which])
        closest = members[np.argsort(-scores[members], kind="stable")][:nearest]
        names = Counter(truth[int(i)] for i in members if truth[int(i)] is not None).most_common(1)
        most = f", {names[0][1]} of them {names[0][0]}" if names else ""
        for rank, item in enumerate(closest.tolist()):
            head = f"prototype {numbers[which]}: {sizes[which]} of {len(clusters)} images{most}\n" if rank == 0 else ""
            pictures.append(thumbnails[item])
            captions.append(f"{head}{truth[item] or 'no single finding'}, cosine {scores[item]:.2f}")
        blank = np.full_like(thumbnails[0], 255)
        pictures += [blank] * (nearest - len(closest))
        captions += [""] * (nearest - len(closest))
    return viz.contact_sheet(pictures, captions, columns=nearest)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """(3, S, S), any intensity range → uint8 (h, w, 3)."""
    plane = image.mean(0)
    low, high = float(plane.min()), float(plane.max())
    grey = (plane - low) / (high - low or 1.0) * 255
    return viz.annotated(grey.round().astype(np.uint8), size=_THUMBNAIL)


class MGCAFigures(L.Callback):
    """Writes the figures of a ``medvlp predict`` run to ``figures/mgca/`` in ``trainer.default_root_dir``.

    ``words-<n>.png`` for the first studies with a known positive label (or simply the first); ``tsne.png`` of the first
    images with exactly one positive label (the paper: 1,600 of them; without labels of any), by finding and by
    prototype; ``prototypes.png``. What a model was trained without is left out. With several processes the figures
    show the share of the first.

    Args:
        studies: how many have their words drawn.
        words: how many words of each.
        wanted: words that come first where a report has them.
        images: most images in the other two figures.
        seed: of t-SNE.
    """

    def __init__(
        self, studies: int = 4, words: int = 4, wanted: list[str] | None = None, images: int = 1600, seed: int = 0
    ) -> None:
        self.studies = studies
        self.words = words
        self.wanted = wanted or []
        self.images = images
        self.seed = seed
        self._reset()

    def _reset(self) -> None:
        self._studies: list[StudyWords] = []
        self._spare: list[StudyWords] = []
        self._embeddings: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []
        self._truth: list[str | None] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at the method.

        Raises:
            ConfigError: it is not MGCA.
        """
        if not isinstance(pl_module, MGCA):
            raise ConfigError(f"MGCAFigures draws what MGCA learns, and the model is {type(pl_module).__name__}")
        self._reset()

    @rank_zero_only
    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects."""
        assert isinstance(pl_module, MGCA)
        positive = (batch["label"] == 1).cpu()
        self._collect_words(trainer, pl_module, batch, positive.any(1))
        wanted = positive.sum(1) == 1 if positive.shape[1] else torch.ones(len(positive), dtype=torch.bool)
        rows = wanted.nonzero()[: max(0, self.images - len(self._truth)), 0]
        if not len(rows):
            return
        names = pl_module.label_names
        findings = positive[rows].int().argmax(1).tolist() if names and positive.shape[1] else [None] * len(rows)
        self._truth += [None if number is None else names[number] for number in findings]
        self._embeddings += list(outputs["image"].float().cpu().numpy()[rows.numpy()])
        self._thumbnails += [_thumbnail(image) for image in batch["image"].float().cpu().numpy()[rows.numpy()]]

    def _collect_words(self, trainer: L.Trainer, model: MGCA, batch: dict[str, Any], positive: Tensor) -> None:
        missing = self.studies - len(self._studies)
        if model.patch_head is None or missing <= 0:
            return
        first = not self._studies and not self._spare
        order = torch.argsort(~positive, stable=True)[:missing]
        order = order if first else order[positive[order]]
        if not len(order):
            return
        rows = order.tolist()
        part = {
            key: [value[i] for i in rows] if isinstance(value, list) else value[order.to(value.device)]
            for key, value in batch.items()
            if isinstance(value, Tensor | list) and len(value) == len(positive)
        }
        with trainer.precision_plugin.predict_step_context():
            made = study_words(model, part, self.words, self.wanted)
        self._studies += [study for study, i in zip(made, rows, strict=True) if positive[i]]
        self._spare += [study for study, i in zip(made, rows, strict=True) if not positive[i]]

    @rank_zero_only
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws."""
        assert isinstance(pl_module, MGCA)
        folder = Path(trainer.default_root_dir) / "figures" / "mgca"
        for number, study in enumerate([*self._studies, *self._spare][: self.studies]):
            viz.save(words_figure(study), folder / f"words-{number}.png")
        if len(self._truth) < _FEWEST:
            rank_zero_warn(
                f"{len(self._truth)} images have exactly one positive label, too few for tsne.png and prototypes.png"
            )
            return
        embeddings = np.stack(self._embeddings)
        clusters = scores = None
        if pl_module.prototypes is not None:
            best = pl_module.cluster_scores(torch.from_numpy(embeddings).to(pl_module.device)).max(1)
            clusters, scores = best.indices.cpu().numpy(), best.values.cpu().numpy()
        figure = embedding_figure(embeddings, self._truth, None if clusters is None else clusters.tolist(), self.seed)
        viz.save(figure, folder / "tsne.png")
        if clusters is not None and scores is not None:
            viz.save(prototype_figure(self._thumbnails, clusters, scores, self._truth), folder / "prototypes.png")
