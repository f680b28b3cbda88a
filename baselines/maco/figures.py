"""Figures of MaCo: the learned weights of the patches (the paper's Fig. 4) and reconstructions."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from medvlp_baselines.maco.module import MaCo
from torch import Tensor

from medvlp import viz
from medvlp.errors import ConfigError

_HIDDEN = 0.55  # grey of hidden patches, between air and body


def weight_figure(model: MaCo) -> Figure:
    """The correlation weight of each patch, and what grounding makes of it.

    Args:
        model: with ``contrast: weighted``.

    Returns:
        A figure of two maps with their scales: the weights, blue below and red above zero; and their softmax
        (:meth:`~medvlp_baselines.maco.module.MaCo.patch_weights`).

    Raises:
        NotSupportedError: the model has no correlation weights.
    """
    learned, shares = model.correlation_map().cpu().numpy(), model.patch_weights().cpu().numpy()
    limit = max(float(np.abs(learned).max()), 1e-12)
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    maps = (
        (left, learned, "correlation weight", {"cmap": "coolwarm", "vmin": -limit, "vmax": limit}),
        (right, shares, f"softmax, τ = {model.grounding_temperature:g}", {"cmap": "inferno", "vmin": 0}),
    )
    for axis, values, title, style in maps:
        drawn = axis.imshow(values, interpolation="nearest", **style)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        figure.colorbar(drawn, ax=axis, shrink=0.85).ax.tick_params(labelsize=7)
    return figure


def reconstruction_figure(model: MaCo, images: Tensor, names: list[str], noise: Tensor | None = None) -> Figure:
    """One row per study: the image, its visible patches, and these with the predicted hidden ones.

    Args:
        model: any MaCo.
        images: (B, 3, S, S) on the model's device, of its training size.
        names: B short captions.
        noise: of the masks, see :meth:`~medvlp_baselines.maco.module.MaCo.reconstruct`.

    Returns:
        A figure; the grey levels of a row are those of its image, and its error is in the model's intensities.

    Raises:
        ConfigError: no image, or images of another size.
    """
    if not len(images):
        raise ConfigError("a figure of reconstructions needs at least one image")
    made = model.reconstruct(images, noise)
    true = images.float()
    low, high = true.amin((1, 2, 3), keepdim=True), true.amax((1, 2, 3), keepdim=True)
    image, pasted = (((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).mean(1) for x in (true, made.pasted))
    visible = torch.where(made.hidden[:, 0] > 0, torch.full_like(image, _HIDDEN), image)
    gray = (torch.stack([image, visible, pasted], 1) * 255).round().to(torch.uint8)
    pictures = gray[..., None].expand(-1, -1, -1, -1, 3).cpu().numpy()
    error = (made.predicted - true).square() * made.hidden
    mean = error.mean((1, 2, 3)) / made.hidden.mean((1, 2, 3)).clamp_min(1e-9)
    captions = []
    for name, value in zip(names, mean.tolist(), strict=True):
        captions += [name, f"visible: {1 - model.mask_ratio:.0%}", f"hidden ones predicted, MSE {value:.3g}"]
    return viz.contact_sheet([picture for row in pictures for picture in row], captions, columns=3)


class MaCoFigures(L.Callback):
    """PNGs in ``figures/`` of the run's folder: patch weights after each validation, and both figures in ``predict``.

    ``weights-epoch=NNN.png`` shows how the weights grow, as Fig. 4 does; ``weights.png`` and ``reconstructions.png``
    come from ``medvlp predict``. A model without weights has reconstructions alone.

    Args:
        studies: how many studies, the first of the split, have their reconstruction drawn.
        every_n_epochs: how often the weights are drawn in training.

    Raises:
        ConfigError: a number below one.
    """

    def __init__(self, studies: int = 6, every_n_epochs: int = 1) -> None:
        if studies < 1 or every_n_epochs < 1:
            raise ConfigError(f"studies {studies} and every_n_epochs {every_n_epochs} must be at least 1")
        self.studies = studies
        self.every_n_epochs = every_n_epochs
        self._images: list[Tensor] = []
        self._names: list[str] = []

    @staticmethod
    def _check(model: Any) -> MaCo:
        if not isinstance(model, MaCo):
            raise ConfigError(f"MaCoFigures draws MaCo's weights and reconstructions, not those of {model.name}")
        return model

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the weights."""
        model = self._check(pl_module)
        if trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs or model.correlation is None:
            return
        name = f"weights-epoch={trainer.current_epoch:03d}.png"
        viz.save(weight_figure(model), Path(trainer.default_root_dir) / "figures" / name)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the studies of the run before."""
        self._images, self._names = [], []

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
        """Keeps the first studies."""
        left = self.studies - len(self._names)
        if left > 0:
            self._images.append(batch["image"][:left].detach())
            self._names += [str(item)[:24] for item in batch["id"][:left]]

    @rank_zero_only
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws both figures."""
        model, folder = self._check(pl_module), Path(trainer.default_root_dir) / "figures"
        if model.correlation is not None:
            viz.save(weight_figure(model), folder / "weights.png")
        if self._images:
            with trainer.precision_plugin.predict_step_context():
                figure = reconstruction_figure(model, torch.cat(self._images), self._names)
            viz.save(figure, folder / "reconstructions.png")
            self._images = []
