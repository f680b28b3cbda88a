"""Segmentation with a frozen or trained encoder, and optionally the pre-trained decoder of the method."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.encoders.decoder import UNetDecoder
from medvlp.encoders.dense import FeatureToPyramid, MedKLIPDecoder, UPerNet
from medvlp.errors import ConfigError, NotSupportedError, check_choice, check_range
from medvlp.losses.precision import exact
from medvlp.losses.segmentation import bce_dice_medklip, focal_dice_maco, focal_dice_mgca
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.samples import SampleStore
from medvlp.metrics.segmentation import COLUMNS, mask_statistics, segmentation_measures
from medvlp.tasks.base import Features, Task, TrainedProtocol, protocol_settings, seeded
from medvlp.tasks.encoder import EncoderSource, optim_from
from medvlp.training.optim import OptimConfig

Decoder = Literal["unet", "upernet", "medklip"]
Loss = Literal["mgca", "medklip", "maco"]

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mgca": focal_dice_mgca,
    "medklip": bce_dice_medklip,
    "maco": focal_dice_maco,
}
"""Losses by name; see :mod:`medvlp.losses.segmentation`."""


@dataclass(frozen=True, kw_only=True)
class _Protocol(TrainedProtocol):
    loss: Loss = "mgca"
    decoder: Decoder = "unet"


_MGCA = OptimConfig(lr=5e-4, weight_decay=0.05, decay_all=True, schedule="constant")
_GLORIA = OptimConfig(optimizer="adam", lr=5e-4, weight_decay=1e-6, decay_all=True, schedule="plateau")
_MEDKLIP = OptimConfig(lr=1e-5, weight_decay=0.02, schedule="constant")
_MACO = OptimConfig(lr=5e-6, weight_decay=0.05, schedule="warmup_cosine", warmup=100)
PROTOCOLS: dict[str, _Protocol] = {
    "frozen": _Protocol(optim=_MGCA),
    "mgca": _Protocol(encoder_mode="train", optim=_MGCA),
    "g2d": _Protocol(encoder_mode="train", optim=replace(_MGCA, lr=2e-4)),
    "gloria": _Protocol(frozen=False, optim=_GLORIA),
    "medklip": _Protocol(frozen=False, loss="medklip", decoder="medklip", optim=_MEDKLIP),
    "maco": _Protocol(frozen=False, loss="maco", decoder="upernet", optim=_MACO),
}
"""Protocols by name; see :class:`Segmentation`."""


class Segmentation(Task):
    """A decoder over the encoder's pyramid that predicts one mask.

    ============ ===========================================================================================
    protocol     settings
    ============ ===========================================================================================
    frozen       ours: as mgca, but the frozen encoder is in eval mode, so that its pyramids can be stored
    mgca         MGCA's code: gradients off, batch norms in train mode; U-Net; 10 focal − log Dice; AdamW 5e-4
                 (its released script), weight decay 0.05
    g2d          G2D's paper, "as MGCA", with 2e-4; ``transfer_decoder: true`` is its encoder-decoder row
    gloria       GLoRIA's code: everything trained, Adam 5e-4, halved when the validation loss stalls
    medklip      MedKLIP's code: everything trained, its own U-Net from stride 16, BCE + Dice, AdamW 1e-5
    maco         MaCo's code: everything trained, UPerNet, focal + Dice, AdamW. Its polynomial decay is a cosine here,
                 and its layer-wise decay and auxiliary head are absent
    ============ ===========================================================================================

    Metrics are those of :func:`medvlp.metrics.segmentation.segmentation_measures`: all Dice conventions, with the score
    of an empty prediction.

    Args:
        encoder: source of the encoder.
        protocol: see the table.
        decoder: "unet" (segmentation-models-pytorch), "upernet" or "medklip".
        decoder_widths: channels of the U-Net's steps, coarsest first; UPerNet takes the first as its width.
        transfer_decoder: start from the method's own pre-trained decoder (G2D).
        transfer_head: with ``transfer_decoder``, keep its last layer too; false re-initialises that layer, as needed
            for a decoder that did not predict a single mask (a reconstructed image, a mask per attention head). G2D's
            paper does not say which it did.
        loss: "mgca", "medklip" or "maco".
        frozen: see :class:`~medvlp.tasks.base.Task`; the decoder is always trained.
        encoder_mode: as above.
        optim: as above.
        threshold: of the probability, in (0, 1), for all metrics.
        **options: of :class:`~medvlp.tasks.base.Task`: features, views, features_dir, resamples, …
    """

    task = "segmentation"
    extracts = "pyramid"

    def __init__(
        self,
        encoder: EncoderSource | None = None,
        protocol: str = "frozen",
        decoder: Decoder | None = None,
        decoder_widths: list[int] | None = None,
        transfer_decoder: bool = False,
        transfer_head: bool = True,
        loss: Loss | None = None,
        frozen: bool | None = None,
        encoder_mode: Literal["eval", "train"] | None = None,
        optim: OptimConfig | None = None,
        threshold: float = 0.5,
        image_size: int = 224,
        features: Features = "cached",
        features_dtype: Literal["float32", "float16"] = "float16",
        **options: Any,
    ) -> None:
        settings = protocol_settings(
            "segmentation",
            PROTOCOLS,
            protocol,
            decoder=decoder,
            loss=loss,
            frozen=frozen,
            encoder_mode=encoder_mode,
            optim=optim_from(optim),
        )
        check_range("(0, 1)", threshold=threshold)
        check_choice("decoder", settings.decoder, get_args(Decoder))
        check_choice("loss", settings.loss, LOSSES)
        super().__init__(
            encoder,
            protocol=protocol,
            image_size=image_size,
            frozen=settings.frozen,
            encoder_mode=settings.encoder_mode,
            optim=settings.optim,
            # MedKLIP's decoder takes the image too
            features="live" if settings.decoder == "medklip" else features,
            features_dtype=features_dtype,
            dense=True,
            keep_method=transfer_decoder,
            **options,
        )
        self.threshold = threshold
        self.criterion = LOSSES[settings.loss]
        self.decoder_kind = settings.decoder
        with seeded(2):
            self._build(transfer_decoder, transfer_head, decoder_widths)

    def _build(self, transfer: bool, with_head: bool, widths: Sequence[int] | None) -> None:
        channels, reductions = self.encoder.channels, self.encoder.reductions
        self.neck: FeatureToPyramid | None = None
        if transfer:
            pretrained = getattr(self.encoder.method, "decoder", None)
            if not isinstance(pretrained, UNetDecoder):
                raise NotSupportedError(
                    f"{self.encoder.name} has no pre-trained decoder to transfer; set transfer_decoder: false"
                )
            if with_head and pretrained.out_channels != 1:
                raise NotSupportedError(
                    f"the decoder of {self.encoder.name} predicts {pretrained.out_channels} channels, not one mask; "
                    "set transfer_head: false to re-initialise its last layer"
                )
            decoder = copy.deepcopy(pretrained).requires_grad_(True)
            if not with_head:
                decoder.new_head(1)
            self.decoder: nn.Module = decoder
            self.encoder.method = None  # the rest of the method is no longer needed
            return
        if len(set(reductions)) == 1:  # a plain transformer
            self.neck = FeatureToPyramid(channels, reductions[0])
            channels, reductions = self.neck.channels, self.neck.reductions
        if self.decoder_kind == "unet":
            self.decoder = UNetDecoder(channels, reductions, 1, widths)
        elif self.decoder_kind == "upernet":
            self.decoder = UPerNet(channels, reductions, 1, widths[0] if widths else 256)
        else:
            self.decoder = MedKLIPDecoder(channels, reductions, 1, widths or (512, 256, 128, 64))

    def _check_data(self) -> None:
        if "mask" not in self._datamodule().targets:
            raise ConfigError("segmentation needs masks: set data.init_args.task: segmentation")

    def _check_training(self, train: Any) -> None:
        if not train.annotated:
            raise ConfigError(f"no mask in the training part: all of its {len(train)} images are without")

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Return the pyramid, finest first."""
        return self.encoder(images)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Compute (B, 1, S, S) logits."""
        levels = list(self.features(batch))
        if self.neck is not None:
            levels = self.neck(levels)
        logits = self.decoder(levels, batch["image"]) if self.decoder_kind == "medklip" else self.decoder(levels)
        side = batch["mask"].shape[-1]
        if logits.shape[-1] != side:  # strides that do not divide the image
            logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
        return logits

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the protocol's loss."""
        return {"segmentation": self.criterion(self.logits(batch), batch["mask"])}

    def store(self) -> SampleStore:
        """Areas of prediction, truth and overlap of each image."""
        return SampleStore(COLUMNS)

    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        return mask_statistics(self.logits(batch).float().sigmoid(), batch["mask"], threshold=self.threshold)

    def pictures(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the predicted masks."""
        return {"masks": (self.logits(batch)[:, 0].float().sigmoid() > self.threshold).cpu().numpy()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Override: loss and areas from one forward pass."""
        (logits,) = exact(self.logits(batch))
        self._log_val_loss(self.criterion(logits, batch["mask"]), batch)
        self._collect("validate", batch, mask_statistics(logits.sigmoid(), batch["mask"], threshold=self.threshold))

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See :func:`medvlp.metrics.segmentation.segmentation_measures`."""
        return partial(segmentation_measures, batch_size=facts["eval_batch_size"])

    def facts(self) -> dict[str, Any]:
        """Size of the batches that MGCA's Dice is a mean over."""
        return {"eval_batch_size": self._datamodule().eval_batch_size}
