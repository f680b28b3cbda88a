"""G2D: from global to dense radiography representation learning (Liu et al., NeurIPS 2024)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.encoders.decoder import UNetDecoder
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.pooling import AttentionPool
from medvlp.encoders.projection import TextProjector, map_projector
from medvlp.encoders.text import TextEncoderConfig
from medvlp.errors import ConfigError
from medvlp.losses.precision import exact
from medvlp.losses.segmentation import dice_bce_official, dice_bce_paper
from medvlp.methods.base import PretrainModule
from medvlp.methods.embeddings import unit_length
from medvlp.methods.g2d.pseudo_mask import OFFICIAL, PseudoMask, PseudoMaskSettings, Threshold, pseudo_mask
from medvlp.scoring.heatmaps import min_max
from medvlp.training.optim import OptimConfig
from medvlp.training.settings import config_from

Variant = Literal["paper", "official"]


_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"


@dataclass(frozen=True)
class _Variant:
    """Settings in which paper and released code differ; the defaults are the paper's."""

    mask: PseudoMaskSettings
    text: TextEncoderConfig
    optim: OptimConfig
    text_to_image: float = 0.0  # Eq. 1 contrasts in one direction: image → report
    heads: int = 3
    query: Literal["mean", "learned"] = "learned"
    start_step: int = 0
    projector_scope: Literal["report", "tokens"] = "report"
    global_contrast: bool = True


_VARIANTS = {
    "paper": _Variant(
        mask=PseudoMaskSettings(),
        text=TextEncoderConfig(pretrained=_CLINICAL_BERT),
        optim=OptimConfig(lr=2e-4, weight_decay=1e-8, schedule="warmup_cosine"),
    ),
    "official": _Variant(
        mask=OFFICIAL,
        text=TextEncoderConfig(pretrained=_CLINICAL_BERT, padding="max_length", freeze_layers=9),
        optim=OptimConfig(lr=2e-5, weight_decay=1e-8, decay_all=True, schedule="warm_restarts", min_lr=1e-8),
        text_to_image=1.0,
        heads=4,
        query="mean",
        start_step=200,
        projector_scope="tokens",
        global_contrast=False,
    ),
}


class G2D(PretrainModule):
    """Global contrast of image and report, and a decoder that predicts a pseudo mask derived from the attention.

    ``L = L_VLA (Eq. 1) + L_PA (Eq. 4)``. Where paper and released code differ (table in ``docs/methods/g2d.md``),
    arguments that are None take the value of ``variant``. Input size, intensities, augmentation, report cleaning, batch
    size and epochs are settings of data module and trainer: see ``experiments/pretrain/g2d/``.

    Args:
        variant: "paper" or "official".
        image: image encoder; ResNet-50 by default.
        text: text encoder; Bio_ClinicalBERT by default, with the variant's padding and freezing.
        optim: optimiser and schedule.
        image_size: side of the images in pixels, for the position table of the attention pool.
        prompts: zero-shot prompt set for validation.
        embed_dim: width of projectors and joint space (Table 5c: 128, 256, 512).
        temperature: σ of Eq. 1.
        heads: attention heads (Table 5e: 1 to 4).
        head_dim: channels per head; ⌈embed_dim / heads⌉ if None, since the paper does not say how 3 divide 128.
        decoder_loss: "pseudo_segmentation", "reconstruction" (mean squared error to the image) or "none" (Table 5a).
        aggregate_heads: one mask of all heads; False: one mask and output channel per head (Table 5d).
        threshold: quantile in [0, 1], "mean", "median" or "gmm" (Table 5b).
        body_mask: restrict the mask to the body (Table 5f).
        smooth_mask: bilateral filter on the mask (Table 5f).
        shuffle_masks: give each image another image's mask (Table 8).
        text_to_image: weight of the report → image direction.
        pixel_loss_start: optimiser steps before the pixel loss counts.
        decoder_widths: channels of the decoder's steps, coarsest first; if None, the last of (256, 128, 64, 32, 16),
            one per level of the pyramid.
        options: further arguments of :class:`~medvlp.methods.base.PretrainModule`. With ``contrastive_chunks`` the
            decoder runs per chunk, and its logits are kept for the whole batch.
    """

    name: ClassVar[str] = "g2d"

    def __init__(
        self,
        variant: Variant = "paper",
        image: ImageEncoderConfig | None = None,
        text: TextEncoderConfig | None = None,
        optim: OptimConfig | None = None,
        image_size: int = 224,
        prompts: str | None = "chexpert",
        embed_dim: int = 128,
        temperature: float = 0.07,
        heads: int | None = None,
        head_dim: int | None = None,
        decoder_loss: Literal["pseudo_segmentation", "reconstruction", "none"] = "pseudo_segmentation",
        aggregate_heads: bool = True,
        threshold: Threshold | None = None,
        body_mask: bool | None = None,
        smooth_mask: bool | None = None,
        shuffle_masks: bool = False,
        text_to_image: float | None = None,
        pixel_loss_start: int | None = None,
        decoder_widths: list[int] | None = None,
        **options: Any,
    ) -> None:
        settings = _VARIANTS[variant]
        super().__init__(
            image=image,
            text=config_from(TextEncoderConfig, text) if text is not None else settings.text,
            optim=config_from(OptimConfig, optim) if optim is not None else settings.optim,
            image_size=image_size,
            prompts=prompts,
            **options,
        )
        self.variant = variant
        self.temperature = temperature
        self.text_to_image = settings.text_to_image if text_to_image is None else text_to_image
        self.pixel_loss_start = settings.start_step if pixel_loss_start is None else pixel_loss_start
        self.global_contrast = settings.global_contrast
        self.decoder_loss = decoder_loss
        self.shuffle_masks = shuffle_masks
        changed: dict[str, Any] = {"threshold": threshold, "body_mask": body_mask, "smooth": smooth_mask}
        self.mask_settings = dataclasses.replace(
            settings.mask, aggregate=aggregate_heads, **{key: v for key, v in changed.items() if v is not None}
        )
        heads = heads or settings.heads
        grid = self.image_encoder.grid()
        self.projector = map_projector(self.image_encoder.out_channels, embed_dim)
        self.pool = AttentionPool(embed_dim, grid, heads, head_dim, query=settings.query)
        self.text_projector = TextProjector(self.text_encoder.width, embed_dim, settings.projector_scope)
        self.decoder: UNetDecoder | None = None
        if decoder_loss != "none":
            if self.image_encoder.upsample_to is not None:
                raise ConfigError("image.upsample_to does not support a decoder; set decoder_loss: none")
            out_channels = 3 if decoder_loss == "reconstruction" else 1 if aggregate_heads else heads
            encoder = self.image_encoder
            self.decoder = UNetDecoder(encoder.channels, encoder.reductions, out_channels, decoder_widths)
            # the format of the features, or every convolution would convert its weights first
            self.decoder.to(memory_format=encoder.memory_format)

    def _encode(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the pyramid, the pooled vectors (B, d) and the attention as maps (B, H, g, g)."""
        pyramid = self.image_encoder(images)
        dense = self.projector(pyramid[-1])
        pooled, attention = self.pool(dense)
        return pyramid, pooled, self.pool.attention_grid(attention, *dense.shape[2:])

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the attention-pooled projected map, (B, embed_dim)."""
        return self._encode(images)[1]

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the projected reports, (N, embed_dim)."""
        vectors: Tensor = self.text_projector(*self.text_encoder(input_ids, attention_mask))
        return vectors

    def embed_patches(self, images: Tensor) -> Tensor:
        """Return L2-normalised cells in the space of the pooled vector, (B, embed_dim, g, g).

        Before normalisation the pooled vector of one head is the attention-weighted mean of these cells and token 0
        (:meth:`~medvlp.encoders.pooling.AttentionPool.project_cells`). The released code normalises the projected map,
        which precedes the pool's projections and so is not in the space of the text.
        """
        dense = self.projector(self.image_encoder(images)[-1])
        return unit_length(self.pool.project_cells(dense), self, dim=1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return ``image`` and ``text`` (B, d), ``attention`` (B, H, g, g) and ``decoded`` logits (B, K, S, S)."""
        pyramid, pooled, attention = self._encode(batch["image"])
        outputs = {
            "image": pooled,
            "text": self.encode_tokens(batch["input_ids"], batch["attention_mask"]),
            "attention": attention,
        }
        if self.decoder is not None:
            outputs["decoded"] = self.decoder(pyramid)
        return outputs

    def pseudo_masks(self, images: Tensor, attention: Tensor) -> PseudoMask:
        """Return the pseudo masks of a batch with the model's settings; see :func:`~.pseudo_mask.pseudo_mask`."""
        return pseudo_mask(attention, images, self.mask_settings)

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return ``contrast`` (L_VLA, Eq. 1) and ``pixel`` (L_PA, Eq. 4) or ``reconstruction``."""
        outputs = self(batch) if outputs is None else outputs
        options = {"temperature": self.temperature, "text_to_image": self.text_to_image}
        terms = {"contrast": self.contrast(outputs["image"], outputs["text"], **options)}
        if self.decoder is None:
            return terms
        decoded = outputs["decoded"]
        if self.decoder_loss == "reconstruction":
            rebuilt, image = exact(decoded, batch["image"])
            name, loss = "reconstruction", F.mse_loss(rebuilt, image)
        else:
            name, target = "pixel", self.pseudo_masks(batch["image"], outputs["attention"]).mask
            if self.shuffle_masks:  # by a rotation, so that no image keeps its mask
                target = target.roll(int(torch.randint(1, max(len(target), 2), (1,))), 0)
            loss = (dice_bce_paper if self.variant == "paper" else dice_bce_official)(decoded, target)
        counts = not self.training or self.global_step >= self.pixel_loss_start
        # DistributedDataParallel needs the decoder in every step's graph; a Dice of raw logits may not be finite.
        terms[name] = loss if counts else decoded.float().mean() * 0.0
        return terms

    @torch.no_grad()
    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return ``attention``, ``pseudo-mask`` and ``decoder``, (B, 1, S, S) in [0, 1], averaged over heads."""
        outputs = self(batch)
        masks = self.pseudo_masks(batch["image"], outputs["attention"])
        attention = min_max(masks.attention.mean(1, keepdim=True))
        result = {
            "attention": F.interpolate(attention, size=batch["image"].shape[-2:], mode="nearest"),
            "pseudo-mask": masks.mask.mean(1, keepdim=True),
        }
        if "decoded" in outputs:
            decoded = outputs["decoded"].float()
            rebuilt = self.decoder_loss == "reconstruction"
            result["decoder"] = (decoded.clamp(0, 1) if rebuilt else decoded.sigmoid()).mean(1, keepdim=True)
        return result
