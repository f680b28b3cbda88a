"""Figures of MaCo: the learned weights of the patches (the paper's Fig. 4) and reconstructions."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from medvlp_baselines.maco.module import MaCo
from torch import Tensor

from medvlp import viz
from medvlp.callbacks import MethodFigures
from medvlp.errors import ConfigError, check_range

_HIDDEN = 0.55  # grey of hidden patches, between air and body


def weight_figure(model: MaCo) -> Figure:
    """Draw the correlation weight of each patch, and their softmax, which grounding uses.

    Raises:
        NotSupportedError: the model has no correlation weights.
    """
    learned, shares = model.correlation_map().cpu().numpy(), model.patch_weights().cpu().numpy()
    limit = max(float(np.abs(learned).max()), 1e-12)
    figure, ((left, right),) = viz.panels(1, 2, (7.2, 3.1))
    maps = (
        (left, learned, "correlation weight", {"cmap": "coolwarm", "vmin": -limit, "vmax": limit}),
        (right, shares, f"softmax, τ = {model.grounding_temperature:g}", {"cmap": "inferno", "vmin": 0}),
    )
    for axis, values, title, style in maps:
        drawn = axis.imshow(values, interpolation="nearest", **style)
        axis.set_title(title, fontsize=9)
        figure.colorbar(drawn, ax=axis, shrink=0.85).ax.tick_params(labelsize=7)
    return figure


def reconstruction_figure(model: MaCo, images: Tensor, names: list[str], noise: Tensor | None = None) -> Figure:
    """Draw one row per study: the image, its visible patches, and these with the predicted hidden ones.

    The grey levels of a row are those of its image; the error is in the model's intensities. Images and noise are those
    of :meth:`~medvlp_baselines.maco.module.MaCo.reconstruct`; names are B short captions.
    """
    if not len(images):
        raise ConfigError("a figure of reconstructions needs at least one image")
    result = model.reconstruct(images, noise)
    true = images.float()
    low, high = true.amin((1, 2, 3), keepdim=True), true.amax((1, 2, 3), keepdim=True)
    image, pasted = (((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).mean(1) for x in (true, result.pasted))
    visible = torch.where(result.hidden[:, 0] > 0, torch.full_like(image, _HIDDEN), image)
    grey = (torch.stack([image, visible, pasted], 1) * 255).round().to(torch.uint8)
    pictures = grey.flatten(0, 1)[..., None].expand(-1, -1, -1, 3).cpu().numpy()
    error = (result.predicted - true).square() * result.hidden
    mean = error.mean((1, 2, 3)) / result.hidden.mean((1, 2, 3)).clamp_min(1e-9)
    captions = []
    for name, value in zip(names, mean.tolist(), strict=True):
        captions += [name, f"visible: {1 - model.mask_ratio:.0%}", f"hidden ones predicted, MSE {value:.3g}"]
    return viz.contact_sheet(list(pictures), captions, columns=3)


class MaCoFigures(MethodFigures):
    """PNGs in ``figures/`` of the run's folder: patch weights after each validation, and both figures in ``predict``.

    ``weights-epoch=NNN.png`` shows how the weights grow, as Fig. 4 does; ``weights.png`` and ``reconstructions.png``
    come from ``medvlp predict``. A model without weights has reconstructions alone.

    Args:
        studies: number of studies, the first of the split, whose reconstruction is drawn.
        every_n_epochs: epochs from one figure of the weights to the next, in training.
    """

    method = MaCo

    def __init__(self, studies: int = 6, every_n_epochs: int = 1) -> None:
        check_range("[1, inf)", studies=studies, every_n_epochs=every_n_epochs)
        self.studies = studies
        self.every_n_epochs = every_n_epochs
        self.reset()

    def reset(self) -> None:
        """Forget the studies of the previous run."""
        self._images: list[Tensor] = []
        self._names: list[str] = []

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the weights."""
        model = self.checked(pl_module)
        if not (trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs or model.correlation is None):
            self.save(trainer, weight_figure(model), f"weights-epoch={trainer.current_epoch:03d}.png")

    def collect(self, trainer: L.Trainer, model: MaCo, outputs: Any, batch: Any) -> None:
        """Keep the first studies."""
        missing = self.studies - len(self._names)
        if missing > 0:
            self._images.append(batch["image"][:missing].detach())
            self._names += [str(item)[:24] for item in batch["id"][:missing]]

    def draw(self, trainer: L.Trainer, model: MaCo) -> None:
        """Draw both figures."""
        if model.correlation is not None:
            self.save(trainer, weight_figure(model), "weights.png")
        if self._images:
            with trainer.precision_plugin.predict_step_context():
                figure = reconstruction_figure(model, torch.cat(self._images), self._names)
            self.save(trainer, figure, "reconstructions.png")
            self.reset()
