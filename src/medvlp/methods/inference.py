"""Inference methods of :class:`~medvlp.methods.base.PretrainModule`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.datasets.inputs import AnyImage, prepare_images
from medvlp.errors import ConfigError, DataError, NotSupportedError
from medvlp.methods.embeddings import unit_length
from medvlp.prompts import PromptSet, load_prompts
from medvlp.scoring.heatmaps import back_to_image, frame_of, min_max, similarity_maps, smooth, upsample
from medvlp.scoring.prompts import PromptTable, class_scores

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule

ClassPrompts = Mapping[str, tuple[Sequence[str], Sequence[str]]]
Prompts = str | PromptSet | ClassPrompts | Sequence[str]
"""Name or file of a prompt set; a set; class to (positive, negative) prompts; or class names ("X." and "No X.")."""


def zero_shot(
    model: "PretrainModule",
    images: AnyImage | Sequence[AnyImage],
    prompts: Prompts | None = None,
    *,
    rule: str | None = None,
    temperature: float = 1.0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Score images for classes that only prompts describe; the images are preprocessed as in training.

    Args:
        model: the method; itself as ``model.zero_shot(...)``.
        images: one or several files (JPEG, PNG, DICOM), PIL images, arrays or tensors
            (:mod:`medvlp.datasets.inputs`).
        prompts: name or file of a prompt set; a set; class to (positive, negative) prompts; or class names alone.
            None: the set that the model was validated with.
        rule: how prompts become a score, a key of :data:`medvlp.scoring.prompts.RULES`. None: the softmax of
            positive against negative prompts (CheXzero), or the cosine in a set without negation.
        temperature: of the softmax.
        batch_size: images encoded at once.

    Returns:
        One row per image, one column per class, larger where the class is more likely.
    """
    table = PromptTable.of(_classes(prompts, model.prompts))
    rule = rule or table.default_rule
    table.check(rule)
    prepared = prepare_images(images, model.preprocess)
    with _evaluating(model):
        texts = model.embed_text(list(table.texts))
        embedded = torch.cat([model.embed_image(part.to(model.device)) for part in prepared.batch.split(batch_size)])
    scores = class_scores(embedded, texts, table, rule, temperature)
    return pd.DataFrame(scores.float().cpu().numpy(), columns=list(table.classes))


def _classes(prompts: Prompts | None, default: PromptSet | None) -> ClassPrompts:
    prompts = default if prompts is None else prompts
    if prompts is None:
        raise ConfigError("the model has no prompt set: pass prompts, or class names")
    if isinstance(prompts, str):
        prompts = load_prompts(prompts)
    if isinstance(prompts, PromptSet):
        return prompts.prompts
    if isinstance(prompts, Mapping):
        return prompts
    if any(not isinstance(name, str) or not name.strip() for name in prompts):
        raise ConfigError("class names must be non-empty text")
    return {name: ((f"{name}.",), (f"No {name[0].lower()}{name[1:]}.",)) for name in prompts}


def ground(
    model: "PretrainModule",
    images: AnyImage | Sequence[AnyImage],
    phrases: str | Sequence[str],
    *,
    sigma: float = 0.0,
    batch_size: int = 32,
) -> list[np.ndarray]:
    """Locate phrases in images, by the cosine of each cell with the phrase.

    Args:
        model: the method; itself as ``model.ground(...)``.
        images: one or several, as for :func:`zero_shot`.
        phrases: one or several, such as "small left apical pneumothorax".
        sigma: standard deviation in cells of a Gaussian filter on the cells (BioViL: 1.5).
        batch_size: images encoded at once.

    Returns:
        For each image float32 (P, H, W) in [−1, 1], upsampled bilinearly to the image as it was read, after undoing
        resize and crop; NaN outside the crop.
    """
    phrases = [phrases] if isinstance(phrases, str) else list(phrases)
    if not phrases or any(not isinstance(phrase, str) or not phrase.strip() for phrase in phrases):
        raise DataError("phrases must be non-empty text: say what to look for")
    prepared = prepare_images(images, model.preprocess)
    side = prepared.batch.shape[-1]
    heatmaps: list[np.ndarray] = []
    with _evaluating(model):
        texts = model.embed_text(phrases)
        for part in prepared.batch.split(batch_size):
            patches = unit_length(model.embed_patches(part.to(model.device)), model, dim=1)
            maps = similarity_maps(patches, texts.expand(len(part), -1, -1))
            maps = upsample(smooth(maps, sigma), side).float().cpu()
            for heatmap in maps:
                number = len(heatmaps)
                geometry, (height, width) = prepared.geometry[number], prepared.grey[number].shape
                frame = frame_of(prepared.transform, geometry)
                heatmaps.append(back_to_image(heatmap, geometry, (height, width), frame).numpy())
    return heatmaps


def explain(model: "PretrainModule", batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return maps for figures by title, (B, 1, S, S) each in [0, 1]; empty if the method has none.

    By default the cosine of each cell with the study's own report, scaled to each image's range.
    """
    try:
        patches = model.embed_patches(batch["image"]) if model.has_text else None
    except NotSupportedError:
        patches = None
    if patches is None:
        return {}
    report = F.normalize(model.encode_tokens(batch["input_ids"], batch["attention_mask"]).float(), dim=-1)
    similarity = torch.einsum("bdhw,bd->bhw", patches, report)[:, None]
    size = batch["image"].shape[-2:]
    return {"similarity to the report": F.interpolate(min_max(similarity), size=size, mode="bilinear")}


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Disable gradients and switch to eval mode; restore the mode of each part, since frozen encoders differ."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
