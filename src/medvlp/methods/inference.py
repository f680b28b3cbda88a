"""What a method answers about images at hand: zero-shot scores and heatmaps of phrases."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medvlp.datasets.inputs import AnyImage, prepare_images
from medvlp.errors import ConfigError, DataError
from medvlp.methods.guards import unit_length
from medvlp.prompts import PromptSet, load_prompts
from medvlp.scoring.heatmaps import back_to_image, frame_of, similarity_maps, smooth, upsample
from medvlp.scoring.prompts import PromptTable, class_scores

Prompts = str | PromptSet | Mapping[str, tuple[Sequence[str], Sequence[str]]] | Sequence[str]
"""Name or file of a prompt set; a set; class to (positive, negative) prompts; or classes alone ("X." and "No X.")."""


class Inference(L.LightningModule):
    """The part of a method that a notebook uses."""

    preprocess: dict[str, Any]
    prompts: PromptSet | None

    def embed_image(self, images: Tensor) -> Tensor:
        """L2-normalised image embeddings."""
        raise NotImplementedError

    def embed_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """L2-normalised embeddings of texts."""
        raise NotImplementedError

    def embed_patches(self, images: Tensor) -> Tensor:
        """L2-normalised embeddings of cells."""
        raise NotImplementedError

    @torch.no_grad()
    def zero_shot(
        self,
        images: AnyImage | Sequence[AnyImage],
        prompts: Prompts | None = None,
        *,
        rule: str | None = None,
        temperature: float = 1.0,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """Scores images for classes that only prompts describe.

        The images are read and prepared as in the model's training and encoded once, whatever the number of classes.

        Args:
            images: one or several: files (JPEG, PNG, DICOM), PIL images, arrays or tensors; see
                :mod:`medvlp.datasets.inputs`.
            prompts: what to look for; the set that the model was validated with if None.
            rule: how prompts become a score, a key of :data:`medvlp.scoring.prompts.RULES`. None: the softmax of
                positive against negative prompts (CheXzero), or the cosine in a set without negation.
            temperature: of the softmax; 1 leaves probabilities near ½ but ranks images the same.
            batch_size: images encoded at once.

        Returns:
            One row per image, one column per class, larger where the class is more likely.

        Raises:
            NotSupportedError: the method has no text side.
            ConfigError: no prompts, an empty one, or no such rule.
            DataError: what was given is no image.
        """
        table = PromptTable.of(self._classes(prompts))
        rule = rule or table.default_rule
        table.check(rule)
        prepared = prepare_images(images, self.preprocess)
        with _evaluating(self):
            texts = self.embed_text(list(table.texts))
            embedded = torch.cat([self.embed_image(part.to(self.device)) for part in prepared.batch.split(batch_size)])
        scores = class_scores(embedded, texts, table, rule, temperature)
        return pd.DataFrame(scores.float().cpu().numpy(), columns=list(table.classes))

    def _classes(self, prompts: Prompts | None) -> Mapping[str, tuple[Sequence[str], Sequence[str]]]:
        if prompts is None:
            if self.prompts is None:
                raise ConfigError("the model has no prompt set of its own: name one, or give classes")
            return self.prompts.prompts
        if isinstance(prompts, PromptSet):
            return prompts.prompts
        if isinstance(prompts, str):
            return load_prompts(prompts).prompts
        if isinstance(prompts, Mapping):
            return prompts
        if any(not isinstance(name, str) or not name.strip() for name in prompts):
            raise ConfigError("a class without a name: say what to look for")
        return {name: ((f"{name}.",), (f"No {name[0].lower()}{name[1:]}.",)) for name in prompts}

    @torch.no_grad()
    def ground(
        self,
        images: AnyImage | Sequence[AnyImage],
        phrases: str | Sequence[str],
        *,
        sigma: float = 0.0,
        batch_size: int = 32,
    ) -> list[np.ndarray]:
        """Where in each image each phrase is.

        The cosine of every cell's embedding with the phrase's, enlarged bilinearly and laid over the image as it was
        read, whatever resize and crop lay between.

        Args:
            images: one or several, as for :meth:`zero_shot`.
            phrases: one or several, such as "small left apical pneumothorax".
            sigma: Gaussian smoothing of the cells beforehand, in cells (BioViL: 1.5).
            batch_size: images encoded at once.

        Returns:
            For each image float32 (P, H, W) in [−1, 1], H and W those of the image; NaN where the model saw nothing.

        Raises:
            NotSupportedError: the method has no text side, or no embeddings of cells.
            DataError: an empty phrase, or no image.
        """
        wanted = [phrases] if isinstance(phrases, str) else list(phrases)
        if not wanted or any(not isinstance(phrase, str) or not phrase.strip() for phrase in wanted):
            raise DataError("phrases must be non-empty text: say what to look for")
        prepared = prepare_images(images, self.preprocess)
        side = prepared.batch.shape[-1]
        found: list[np.ndarray] = []
        with _evaluating(self):
            texts = self.embed_text(wanted)
            for part in prepared.batch.split(batch_size):
                patches = unit_length(self.embed_patches(part.to(self.device)), self, dim=1)
                maps = similarity_maps(patches, texts.expand(len(part), -1, -1))
                maps = upsample(smooth(maps, sigma), side).float().cpu()
                for heatmap in maps:
                    number = len(found)
                    geometry, (height, width) = prepared.geometry[number], prepared.grey[number].shape
                    frame = frame_of(prepared.transform, geometry)
                    found.append(back_to_image(heatmap, geometry, (height, width), frame).numpy())
        return found


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each part in the mode that it was in: frozen encoders have their own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
