"""MGCA's figures: regions of words (the paper's Figure 3), t-SNE and clusters (Figure 4), images around prototypes.

In a run: the callback :class:`MGCAFigures`, with ``medvlp predict``. In a notebook: :func:`study_words`,
:func:`words_figure`, :func:`embedding_figure` and :func:`prototype_figure`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import matplotlib
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from medvlp_baselines.mgca.module import MGCA
from torch import Tensor

from medvlp import viz
from medvlp.callbacks import MethodFigures
from medvlp.errors import ConfigError
from medvlp.losses.tokens import entries
from medvlp.methods.embeddings import tokenizer_of
from medvlp.scoring.heatmaps import stretch

_COLOURS = 20
_THUMBNAIL = 128
_FEWEST = 5  # points of a t-SNE


class StudyWords(NamedTuple):
    """One study and where words of its report look."""

    image: np.ndarray  # (3, S, S), as the model saw it
    regions: dict[str, np.ndarray]  # word → (S, S) in [0, 1]
    text: str
    title: str


@torch.no_grad()
def study_words(model: MGCA, batch: dict[str, Any], count: int = 4, wanted: Sequence[str] = ()) -> list[StudyWords]:
    """Return the regions of words, study by study; a report without words has none.

    Args:
        model: with token alignment and a tokenizer.
        batch: on the model's device.
        count: words per study: the different ones that [CLS] attends to most, of three letters or more.
        wanted: words that come first where a report has them, in this order; case does not matter.
    """
    tokenizer = tokenizer_of(model)
    outputs = model(batch)
    regions = stretch(model.word_regions(outputs).float(), batch["image"].shape[-1]).cpu().numpy()
    attention = outputs["word_attention"].masked_fill(outputs["padding"], 0).cpu().numpy()
    padding = outputs["padding"].cpu().numpy()
    index = entries(batch["word_groups"], batch["attention_mask"]).index.cpu().numpy()
    ids = batch["input_ids"].cpu().numpy()
    images = batch["image"].float().cpu().numpy()
    special = set(tokenizer.all_special_ids)  # [SEP], and [UNK], which is no word
    ranks = {word.lower(): rank for rank, word in enumerate(wanted)}
    studies = []
    for study in range(len(ids)):
        entry_of: dict[str, int] = {}
        for entry in np.flatnonzero(~padding[study])[np.argsort(-attention[study][~padding[study]], kind="stable")]:
            # entry 0 is [CLS], which the words do not count
            pieces = ids[study][index[study] == entry + 1].tolist()
            word = tokenizer.decode(pieces).strip()
            if sum(letter.isalpha() for letter in word) >= 3 and special.isdisjoint(pieces):
                entry_of.setdefault(word, int(entry))
        order = sorted(entry_of, key=lambda word: ranks.get(word.lower(), len(ranks)))  # stable
        chosen = {word: regions[study, entry_of[word]] for word in order[:count]}
        studies.append(StudyWords(images[study], chosen, batch["text"][study], str(batch["id"][study])[:24]))
    return studies


def words_figure(study: StudyWords) -> Figure:
    """Draw a radiograph, the region of each word laid over it, and the report; save with :func:`medvlp.viz.save`."""
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
        members = np.array([group == name for group in groups])
        label = f"{name} ({counts[name]})"
        axis.scatter(points[members, 0], points[members, 1], s=8, color=palette(number), linewidths=0, label=label)
    axis.set_axis_on()
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def embedding_figure(
    embeddings: np.ndarray, truth: Sequence[str | None], clusters: Sequence[int] | None = None, seed: int = 0
) -> Figure:
    """Draw t-SNE of image embeddings, coloured by finding and by prototype; the 20 largest groups have colours.

    Embeddings (N, d), at least 5, are L2-normalised. ``truth`` holds N findings, None for an image without one, which
    is grey; ``clusters`` N numbers of prototypes, None to skip that panel.
    """
    from sklearn.manifold import TSNE

    count = len(embeddings)
    if count < _FEWEST:
        raise ConfigError(f"t-SNE of {count} images shows nothing; give at least {_FEWEST}")
    values = np.ascontiguousarray(embeddings, dtype=np.float32)
    # The start from principal components divides by their spread.
    start = "pca" if float(np.ptp(values, axis=0).max()) > 1e-6 else "random"
    points = TSNE(perplexity=min(30.0, (count - 1) / 3), init=start, random_state=seed).fit_transform(values)
    columns = 1 if clusters is None else 2
    figure, axes = viz.panels(1, columns, (6.2 * columns, 4.2))
    _scatter(axes[0, 0], points, truth, f"{count} images by finding")
    if clusters is not None:
        _scatter(axes[0, 1], points, [f"prototype {number}" for number in clusters], "by nearest prototype")
    return figure


def prototype_figure(
    thumbnails: Sequence[np.ndarray],
    clusters: np.ndarray,
    scores: np.ndarray,
    truth: Sequence[str | None],
    prototypes: int = 6,
    nearest: int = 5,
) -> Figure:
    """Draw the images nearest to each of the prototypes that most images belong to, a row each.

    Args:
        thumbnails: N images, uint8 (h, w, 3).
        clusters: (N,) number of each image's prototype.
        scores: (N,) its cosine with that prototype.
        truth: N findings, None where an image has none.
        prototypes: largest number of rows.
        nearest: images in a row.
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
        heading = f"prototype {numbers[which]}: {sizes[which]} of {len(clusters)} images{most}\n"
        for item in closest.tolist():
            pictures.append(thumbnails[item])
            captions.append(f"{heading}{truth[item] or 'no single finding'}, cosine {scores[item]:.2f}")
            heading = ""
        missing = nearest - len(closest)
        pictures += [np.full_like(thumbnails[0], 255)] * missing
        captions += [""] * missing
    return viz.contact_sheet(pictures, captions, columns=nearest)


class MGCAFigures(MethodFigures):
    """Figures of a ``medvlp predict`` run, in ``figures/mgca/`` of the run's folder.

    ``words-<n>.png`` for the first studies with a known positive label (or simply the first); ``tsne.png`` of the first
    images with exactly one positive label (the paper: 1,600 of them; without labels of any), by finding and by
    prototype; ``prototypes.png``. What a model was trained without is skipped. With several processes the figures show
    the share of the first.

    Args:
        studies: number of studies whose words are drawn.
        words: number of words of each.
        wanted: words that come first where a report has them.
        images: largest number of images in the other two figures.
        seed: of t-SNE.
    """

    method = MGCA
    folder = "figures/mgca"

    def __init__(
        self, studies: int = 4, words: int = 4, wanted: list[str] | None = None, images: int = 1600, seed: int = 0
    ) -> None:
        self.studies = studies
        self.words = words
        self.wanted = wanted or []
        self.images = images
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Forget what was collected."""
        self._studies: list[StudyWords] = []
        self._spare: list[StudyWords] = []
        self._embeddings: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []
        self._truth: list[str | None] = []

    def collect(self, trainer: L.Trainer, model: MGCA, outputs: Any, batch: Any) -> None:
        """Keep words, embeddings and thumbnails of what will be drawn."""
        positive = (batch["label"] == 1).cpu()
        self._collect_words(trainer, model, batch, positive.any(1))
        single = positive.sum(1) == 1 if positive.shape[1] else torch.ones(len(positive), dtype=torch.bool)
        rows = single.nonzero()[: max(0, self.images - len(self._truth)), 0].tolist()
        labelled = bool(model.label_names) and positive.shape[1] > 0
        for row in rows:
            self._truth.append(model.label_names[int(positive[row].int().argmax())] if labelled else None)
            self._embeddings.append(outputs["image"][row].float().cpu().numpy())
            pixels = (255 * viz.grey(batch["image"][row].float().cpu().numpy())).round().astype(np.uint8)
            self._thumbnails.append(viz.annotated(pixels, size=_THUMBNAIL))

    def _collect_words(self, trainer: L.Trainer, model: MGCA, batch: dict[str, Any], positive: Tensor) -> None:
        missing = self.studies - len(self._studies)
        if model.patch_head is None or missing <= 0:
            return
        order = torch.argsort(~positive, stable=True)[:missing]
        if self._studies or self._spare:  # later batches add studies with a positive label alone
            order = order[positive[order]]
        if not len(order):
            return
        rows = order.tolist()
        part = {
            key: [value[i] for i in rows] if isinstance(value, list) else value[order.to(value.device)]
            for key, value in batch.items()
            if isinstance(value, Tensor | list) and len(value) == len(positive)
        }
        with trainer.precision_plugin.predict_step_context():
            studies = study_words(model, part, self.words, self.wanted)
        for study, row in zip(studies, rows, strict=True):
            (self._studies if positive[row] else self._spare).append(study)

    def draw(self, trainer: L.Trainer, model: MGCA) -> None:
        """Draw all figures."""
        for number, study in enumerate([*self._studies, *self._spare][: self.studies]):
            self.save(trainer, words_figure(study), f"words-{number}.png")
        if len(self._truth) < _FEWEST:
            rank_zero_warn(
                f"{len(self._truth)} images have exactly one positive label, too few for tsne.png and prototypes.png"
            )
            return
        embeddings = np.stack(self._embeddings)
        clusters = scores = None
        if model.prototypes is not None:
            best = model.cluster_scores(torch.from_numpy(embeddings).to(model.device)).max(1)
            clusters, scores = best.indices.cpu().numpy(), best.values.cpu().numpy()
        figure = embedding_figure(embeddings, self._truth, None if clusters is None else clusters.tolist(), self.seed)
        self.save(trainer, figure, "tsne.png")
        if clusters is not None and scores is not None:
            self.save(trainer, prototype_figure(self._thumbnails, clusters, scores, self._truth), "prototypes.png")
