"""Figures of where the words of a report look: one sheet per study."""

import re
from typing import Any

import lightning as L
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from medvlp_baselines.gloria.module import GLoRIA

from medvlp import viz
from medvlp.callbacks import MethodFigures
from medvlp.errors import check_range
from medvlp.methods.embeddings import tokenizer_of
from medvlp.scoring.heatmaps import upsample


def overlay(image: np.ndarray, heat: np.ndarray | None = None, strength: float = 0.45) -> np.ndarray:
    """Lay a map (H, W) in [0, 1] in colour over a radiograph (C, H, W) in grey: uint8 (H, W, 3)."""
    pixels = np.repeat(viz.grey(image)[..., None], 3, axis=2)
    if heat is not None:
        pixels = (1 - strength) * pixels + strength * matplotlib.colormaps["inferno"](heat)[..., :3]
    return (255 * pixels).round().astype(np.uint8)


def entry_texts(tokenizer: Any, input_ids: list[int], word_groups: list[int], attention_mask: list[int]) -> list[str]:
    """Return the text of each entry of one report as the local loss counts them: [CLS], the words, [SEP]."""
    pieces: list[list[int]] = []
    previous = -1
    for token, group, attended in zip(input_ids, word_groups, attention_mask, strict=True):
        if attended and group >= 0 and group == previous:
            pieces[-1].append(token)
        elif attended:
            pieces.append([token])
        previous = group if attended else -1
    return [str(tokenizer.decode(piece)) for piece in pieces]


@torch.no_grad()
def word_figures(model: GLoRIA, batch: dict[str, Any], words: int = 7, studies: int | None = None) -> list[Figure]:
    """Draw one sheet per study: the radiograph, and the attention of the words that match their regions best.

    Maps are stretched from 0 to each map's maximum, so that a word which looks everywhere alike is bright everywhere.
    The captions give the cosine of the word with what it attends to. Punctuation is skipped; a report without words
    gives the radiograph alone.

    Args:
        model: with a tokenizer.
        batch: images and tokens on the model's device, as a datamodule gives them.
        words: largest number of words of each report.
        studies: number of studies, from the first of the batch; None draws all.
    """
    tokenizer = tokenizer_of(model)
    keys = ("image", "input_ids", "word_groups", "attention_mask")
    part = {key: batch[key][:studies] for key in keys if key in batch}
    maps, cosines, inside = model.attend(part)
    columns = (part[key].tolist() for key in keys[1:])
    texts = [entry_texts(tokenizer, *rows) for rows in zip(*columns, strict=True)]
    # Punctuation marks are words to the loss, but nothing to look at.
    spoken = torch.tensor(
        [[re.search(r"\w", t) is not None for t in row + [""] * (maps.shape[1] - len(row))] for row in texts]
    )
    inside = inside & spoken.to(inside.device)
    best = cosines.masked_fill(~inside, -torch.inf).topk(min(words, maps.shape[1]), dim=1).indices
    best = best.sort(1).values  # in reading order
    chosen = maps.gather(1, best[..., None, None].expand(-1, -1, *maps.shape[2:]))
    chosen = chosen / chosen.amax((2, 3), keepdim=True).clamp_min(1e-12)
    heat = upsample(chosen, tuple(part["image"].shape[-2:])).clamp(0, 1).cpu().numpy()
    images = part["image"].float().cpu().numpy()
    figures = []
    for study, image in enumerate(images):
        shown = [(k, entry) for k, entry in enumerate(best[study].tolist()) if inside[study, entry]]
        pictures = [overlay(image), *(overlay(image, heat[study, k]) for k, _ in shown)]
        captions = [f"{texts[study][entry]}\ncosine {cosines[study, entry]:.2f}" for _, entry in shown]
        figures.append(viz.contact_sheet(pictures, ["radiograph", *captions]))
    return figures


class WordFigures(MethodFigures):
    """In ``medvlp predict``, sheets of the first studies: ``figures/words_<number>_<id>.png`` in the run's folder.

    ``--trainer.callbacks+=medvlp_baselines.gloria.figures.WordFigures`` adds it. The files show words of reports: keep
    them as safe as the corpus.

    Args:
        studies: number of studies.
        words: largest number of words of each report.
    """

    method = GLoRIA

    def __init__(self, studies: int = 8, words: int = 7) -> None:
        check_range("[1, inf)", studies=studies, words=words)
        self.studies = studies
        self.words = words
        self._done = 0

    def reset(self) -> None:
        """Start again."""
        self._done = 0

    def collect(self, trainer: L.Trainer, model: GLoRIA, outputs: Any, batch: Any) -> None:
        """Draw the sheets that are still missing."""
        missing = self.studies - self._done
        if missing <= 0:
            return
        with trainer.precision_plugin.predict_step_context():
            figures = word_figures(model, batch, self.words, missing)
        for figure, item in zip(figures, batch["id"], strict=False):
            name = re.sub(r"[^\w.-]+", "_", str(item))[-64:]
            self.save(trainer, figure, f"words_{self._done:03d}_{name}.png")
            self._done += 1
