"""Figures of where the words of a report look: one sheet per study."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from medvlp_baselines.gloria.module import GLoRIA

from medvlp import viz
from medvlp.errors import ConfigError, NotSupportedError


def overlay(image: np.ndarray, heat: np.ndarray | None = None, strength: float = 0.45) -> np.ndarray:
    """A radiograph in grey, with a map in colour over it.

    Args:
        image: (C, H, W), any affine intensity range; its channels are averaged.
        heat: (H, W) in [0, 1], or None.
        strength: opacity of the map, in [0, 1].

    Returns:
        uint8 (H, W, 3).
    """
    gray = image.astype(np.float32).mean(0)
    low, high = float(gray.min()), float(gray.max())
    gray = (gray - low) / (high - low) if high > low else np.zeros_like(gray)
    pixels = np.repeat(gray[..., None], 3, axis=2)
    if heat is not None:
        pixels = (1 - strength) * pixels + strength * matplotlib.colormaps["inferno"](heat)[..., :3]
    return (255 * pixels).round().astype(np.uint8)


def entry_texts(tokenizer: Any, input_ids: list[int], word_groups: list[int], attention_mask: list[int]) -> list[str]:
    """What stands at the entries of one text: [CLS], its words, [SEP], as the local loss counts them.

    Args:
        tokenizer: of the model.
        input_ids: L ids.
        word_groups: L, −1 for special tokens and padding.
        attention_mask: L, 0 at padding.

    Returns:
        One string per entry.
    """
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
    """One sheet per study: the radiograph, and the attention of the words that match their regions best.

    Maps are stretched from 0 to each map's maximum, so that a word which looks everywhere alike is bright everywhere.
    The captions give the cosine of the word with what it attends to. Punctuation is left out.

    Args:
        model: with a tokenizer.
        batch: images and tokens on the model's device, as a datamodule gives them.
        words: at most so many words of each report.
        studies: only the first so many of the batch.

    Returns:
        Matplotlib figures; save them with :func:`medvlp.viz.save`. A report without words gives the radiograph alone.

    Raises:
        ConfigError: the model has no tokenizer yet.
    """
    if model.tokenizer is None:
        raise ConfigError("the model has no tokenizer yet: fit it, load a checkpoint, or call attach_tokenizer()")
    keys = ("image", "input_ids", "word_groups", "attention_mask")
    part = {key: batch[key][:studies] for key in keys if key in batch}
    maps, cosines, inside = model.attend(part)
    columns = (part[key].tolist() for key in keys[1:])
    texts = [entry_texts(model.tokenizer, *rows) for rows in zip(*columns, strict=True)]
    # Signs of punctuation are words to the loss, but nothing to look at.
    spoken = torch.tensor(
        [[re.search(r"\w", t) is not None for t in row + [""] * (maps.shape[1] - len(row))] for row in texts]
    )
    inside = inside & spoken.to(inside.device)
    best = cosines.masked_fill(~inside, -torch.inf).topk(min(words, maps.shape[1]), dim=1).indices
    best = best.sort(1).values  # in reading order
    chosen = maps.gather(1, best[..., None, None].expand(-1, -1, *maps.shape[2:]))
    chosen = chosen / chosen.amax((2, 3), keepdim=True).clamp_min(1e-12)
    heat = F.interpolate(chosen, size=part["image"].shape[-2:], mode="bilinear").clamp(0, 1).cpu().numpy()
    images = part["image"].float().cpu().numpy()
    cosine, is_shown, places = cosines.tolist(), inside.tolist(), best.tolist()
    figures = []
    for study, image in enumerate(images):
        shown = [(k, place) for k, place in enumerate(places[study]) if is_shown[study][place]]
        pictures = [overlay(image), *(overlay(image, heat[study, k]) for k, _ in shown)]
        captions = [f"{texts[study][place]}\ncosine {cosine[study][place]:.2f}" for _, place in shown]
        figures.append(viz.contact_sheet(pictures, ["radiograph", *captions]))
    return figures


class WordFigures(L.Callback):
    """In ``medvlp predict``, sheets of the first studies: ``figures/words_<place>_<id>.png`` in the run's folder.

    ``--trainer.callbacks+=medvlp_baselines.gloria.figures.WordFigures`` adds it. The files show words of reports: keep
    them as safe as the corpus.

    Args:
        studies: how many.
        words: at most so many words of each report.

    Raises:
        ConfigError: not even one study or one word.
    """

    def __init__(self, studies: int = 8, words: int = 7) -> None:
        if min(studies, words) < 1:
            raise ConfigError(f"WordFigures needs at least one study and one word, not {studies} and {words}")
        self.studies = studies
        self.words = words
        self._done = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start again.

        Raises:
            NotSupportedError: the method is not GLoRIA.
        """
        if not isinstance(pl_module, GLoRIA):
            raise NotSupportedError(f"WordFigures draws GLoRIA's words, not {type(pl_module).__name__}")
        self._done = 0

    @rank_zero_only
    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Draws what is still missing."""
        left = self.studies - self._done
        if left <= 0:
            return
        folder = Path(trainer.default_root_dir) / "figures"
        with trainer.precision_plugin.predict_step_context():
            figures = word_figures(pl_module, batch, self.words, left)
        for figure, item in zip(figures, batch["id"], strict=False):
            name = re.sub(r"[^\w.-]+", "_", str(item))[-64:]
            viz.save(figure, folder / f"words_{self._done:03d}_{name}.png")
            self._done += 1
