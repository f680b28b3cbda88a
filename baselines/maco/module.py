"""MaCo: masked contrastive learning of radiographs and reports (Huang et al., 2023)."""

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from medvlp_baselines.maco import losses as maco
from medvlp_baselines.maco.autoencoder import (
    Decoder,
    encode_patches,
    encoder_config,
    fixed_noise,
    initialise,
    initialise_transformer,
    patch_tokens,
    shrink,
    transformer_of,
)
from torch import Tensor, nn

from medvlp import distributed
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.errors import ConfigError, NotSupportedError, check_choice, check_range
from medvlp.losses.precision import exact
from medvlp.methods.base import PretrainModule
from medvlp.methods.embeddings import unit_length
from medvlp.scoring.heatmaps import min_max, stretch, upsample
from medvlp.training.optim import OptimConfig

_LARGEST_SCALE = 100.0  # CLIP's, of the cosines


class _Variant(NamedTuple):
    super_resolution: bool
    positions: Literal["mae", "official"]
    text: TextEncoderConfig
    optim: OptimConfig


_BERT = TextEncoderConfig(
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    vocab_size=30000,
    max_length=100,
    pooling="pooler",
    dropout=True,
)
_ADAMW = OptimConfig(lr=4.5e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup=2 / 30)
_VARIANTS = {
    "paper": _Variant(super_resolution=False, positions="mae", text=_BERT, optim=_ADAMW),
    "official": _Variant(
        super_resolution=True,
        positions="official",
        text=replace(_BERT, num_layers=6),
        optim=replace(_ADAMW, lr=2.5e-4, warmup=2 / 51),
    ),
}


class Reconstruction(NamedTuple):
    """What the decoder predicts of masked images, (B, 3, S, S) in the intensities of the images."""

    predicted: Tensor  # every patch as predicted, but only hidden ones are trained
    hidden: Tensor  # 1 where a patch was hidden, (B, 1, S, S)
    pasted: Tensor  # the visible patches of the image and the predicted hidden ones


class MaCo(PretrainModule):
    """A masked autoencoder whose visible patches are contrasted with the report.

    ``L = λ · L_mae (Eq. 1) + (1 − λ) · L_align (Eq. 3)``. A linear function of which patches are visible weighs each
    pair in the contrast. Where paper and released code differ, ``variant`` decides; each argument left at None takes
    the variant's value:

    =====================  ========================================  ===========================================
    what                   paper                                     official
    =====================  ========================================  ===========================================
    total                  0.9 · reconstruction + 0.1 · contrast     plain sum (λ is read and ignored)
    directions             image → report                            both
    weights                softmax in groups of 16, in the           softplus of each, as a factor of the logits
                           temperature and on the loss               and, in two further terms, on the loss
    temperature            log-parameter, cosines × 100 at most      the factor itself, start 1/0.03, no limit
    correlation bias       none (a softmax does not see it)          one
    target                 image of 224 px                           image of 448 px, halved for the encoder
    position table         MAE's                                     MAE's with a slip in the frequencies
    BERT                   12 layers, own start                      6 layers, Xavier-uniform start
    optimisation           4.5e-4                                    2.5e-4
    =====================  ========================================  ===========================================

    Where the paper is silent both follow the code: ViT-B/16, half of the patches hidden, a decoder of 4 blocks of width
    768 with 6 heads, BERT's pooler, raw pixels as targets, 2 epochs of warm-up. BERT has the paper's 768 channels: the
    384 of the released configuration cannot be contrasted with 768.

    Sampling of report sentences, augmentation, batch and epochs are the datamodule's and the trainer's:
    ``text_sampling: sentences`` or ``pieces``, ``transform: maco``; see ``experiments/pretrain/maco/``.

    In training, forward sees the visible patches. In evaluation embeddings are those of the whole image, and the losses
    are taken with masks that depend on the study alone.

    Args:
        variant: "paper" or "official".
        image: image encoder, a timm vision transformer; ViT-B/16 with random weights by default. Its final norm is
            always on, and its position table fixed: a sine-cosine table, or the one that comes with loaded weights.
        text: text encoder; a BERT trained from scratch by default. Its width is that of the joint space.
        optim: optimiser and schedule.
        image_size: side of the images of the datamodule in pixels; 224, or 448 with super-resolution, if None.
        prompts: zero-shot prompt set for validation.
        contrast: "weighted", "plain" (CLIP's: no weights, mean of both directions), or "none" (a masked autoencoder
            without a text side), the rows of Table 6.
        mask_ratio: share of the patches that is hidden, in [0, 1).
        super_resolution: halve the images for the encoder (bicubic) and reconstruct them at full size.
        normalise_target: reconstruct patches of zero mean and unit variance.
        balance: λ of the paper variant.
        temperature: τ3 at the start.
        group: mini-group D of the paper variant's weights.
        tau1: of the weight in the temperature (paper).
        tau2: of the weight on the loss (paper).
        decoder_dim: channels of the decoder.
        decoder_depth: its blocks.
        decoder_heads: its attention heads.
        grounding_temperature: τ of :meth:`patch_weights` (Fig. 5: 0.01 to 0.1).
        options: further arguments of :class:`~medvlp.methods.base.PretrainModule`.
    """

    name: ClassVar[str] = "maco"
    has_text: bool = True  # type: ignore[misc]  # of the object, not the class: contrast "none" has no text side

    def __init__(
        self,
        variant: maco.Variant = "paper",
        image: ImageEncoderConfig | None = None,
        text: TextEncoderConfig | None = None,
        optim: OptimConfig | None = None,
        image_size: int | None = None,
        prompts: str | None = "chexpert",
        contrast: Literal["weighted", "plain", "none"] = "weighted",
        mask_ratio: float = 0.5,
        super_resolution: bool | None = None,
        normalise_target: bool = False,
        balance: float = 0.9,
        temperature: float = 0.03,
        group: int = 16,
        tau1: float = 1.0,
        tau2: float = 16.0,
        decoder_dim: int = 768,
        decoder_depth: int = 4,
        decoder_heads: int = 6,
        grounding_temperature: float = 0.02,
        **options: Any,
    ) -> None:
        check_choice("variant", variant, _VARIANTS)
        check_choice("contrast", contrast, ("weighted", "plain", "none"))
        check_range("[0, 1]", balance=balance)
        temperatures = {"temperature": temperature, "tau1": tau1, "tau2": tau2}
        check_range("(0, inf)", **temperatures, grounding_temperature=grounding_temperature)
        check_range("[1, inf)", group=group)
        settings = _VARIANTS[variant]
        self.super_resolution = settings.super_resolution if super_resolution is None else super_resolution
        factor = 2 if self.super_resolution else 1
        side = (224 * factor if image_size is None else image_size) // factor
        self.has_text = contrast != "none"
        encoder = encoder_config(image, side)
        super().__init__(
            image=encoder,
            text=text or settings.text,
            optim=optim or settings.optim,
            image_size=side * factor if image_size is None else image_size,
            prompts=prompts if self.has_text else None,
            **options,
        )
        self.variant = variant
        self.contrast_kind = contrast
        self.mask_ratio = mask_ratio
        self.normalise_target = normalise_target
        self.balance = balance
        self.group, self.tau1, self.tau2 = group, tau1, tau2
        self.grounding_temperature = grounding_temperature
        self.grid, self.target_patch = self._patch_grid(side, factor)
        width = self.image_encoder.out_channels
        if not (encoder.pretrained or encoder.weights):
            initialise_transformer(self.vit, settings.positions)
        self.vit.pos_embed.requires_grad_(False)
        self.decoder = Decoder(
            width, self.grid, decoder_dim, decoder_depth, decoder_heads, 3 * self.target_patch**2, settings.positions
        )
        initialise(self.decoder)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        self.image_head: nn.Linear | None = None
        self.correlation: nn.Linear | None = None
        if self.has_text:
            self._build_contrast(width, temperature)

    def _patch_grid(self, side: int, factor: int) -> tuple[int, int]:
        # patches along each side of the encoder's images, and pixels along each side of one in the target
        patch = self.vit.patch_embed.patch_size[0]
        if self.image_size != side * factor or side % patch:
            raise ConfigError(
                f"image_size {self.image_size} must be a multiple of {patch * factor} px: patches of {patch}"
                f"{', of the image at half its size' if factor == 2 else ''}"
            )
        grid = side // patch
        if not 0 <= self.mask_ratio < 1 or int(grid**2 * (1 - self.mask_ratio)) < 1:
            raise ConfigError(f"mask_ratio {self.mask_ratio} of {grid**2} patches must lie in [0, 1) and leave some")
        return grid, patch * factor

    def _build_contrast(self, width: int, temperature: float) -> None:
        official = self.variant == "official"
        self.image_head = nn.Linear(width, self.text_encoder.width)
        initialise(self.image_head)
        if official and not self.text_config.pretrained:
            for part in self.text_encoder.modules():
                if isinstance(part, nn.Linear):
                    initialise(part)
        start = torch.tensor(1 / temperature)
        self.logit_scale = nn.Parameter(start if official else start.log())
        if self.contrast_kind == "weighted":
            self.correlation = nn.Linear(self.grid**2, 1, bias=official)
            for parameter in self.correlation.parameters():
                nn.init.zeros_(parameter)

    @property
    def vit(self) -> Any:
        """Timm's vision transformer inside the image encoder."""
        return transformer_of(self.image_encoder)

    @property
    def temperature(self) -> Tensor:
        """τ3, which divides the cosines: a scalar."""
        return 1 / self.logit_scale if self.variant == "official" else (-self.logit_scale).exp()

    def _encoder_input(self, images: Tensor) -> Tensor:
        if not self.super_resolution:
            return images
        # The released code's resize of tensors did not smooth before it dropped pixels.
        return shrink(exact(images)[0], self.image_size // 2, antialias=self.variant == "paper")

    def _pooled(self, encoded: Tensor) -> Tensor:
        if self.image_head is None:
            return encoded[:, 1:].mean(1)
        return maco.image_embedding(encoded, self.image_head.weight, self.image_head.bias)

    def _patches(self, images: Tensor) -> tuple[Tensor, int, int]:
        # (B, 1 + h · w, D), h and w, of the whole image
        tokens, height, width = patch_tokens(self.vit, self._encoder_input(images))
        return encode_patches(self.vit, tokens), height, width

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, d): mean of the projected patches, none hidden; (B, D), not projected, without a text."""
        return self._pooled(self._patches(images)[0])

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, d): the report vector of the text encoder, without a projection."""
        if not self.has_text:
            raise NotSupportedError('maco with contrast "none" has no text side: it cannot embed texts')
        return self.text_encoder(input_ids, attention_mask)[1]

    def embed_patches(self, images: Tensor) -> Tensor:
        """L2-normalised :meth:`encode_patches`."""
        return unit_length(self.encode_patches(images), self, dim=1)

    def encode_patches(self, images: Tensor) -> Tensor:
        """Project patches, none hidden: (B, 3, S, S) → (B, d, h, w).

        The released grounding multiplies them by :meth:`patch_weights`, and does not normalise.
        """
        if self.image_head is None:
            raise NotSupportedError('maco with contrast "none" has no joint space')
        encoded, height, width = self._patches(images)
        cells = self.image_head(encoded[:, 1:])
        return cells.transpose(1, 2).reshape(len(images), -1, height, width)

    def patch_weights(self, temperature: float | None = None) -> Tensor:
        """Weight of each patch in grounding: softmax of the correlation weights, (g, g), of sum 1.

        Args:
            temperature: τ; ``grounding_temperature`` if None.
        """
        weights = maco.grounding_weights(self.correlation_map(), temperature or self.grounding_temperature)
        return weights.view(self.grid, self.grid)

    def correlation_map(self) -> Tensor:
        """Return the learned weights of the patches (Fig. 4): (g, g), any sign, all zero at the start.

        Raises:
            NotSupportedError: the contrast is not "weighted".
        """
        if self.correlation is None:
            raise NotSupportedError(f'maco with contrast "{self.contrast_kind}" has no correlation weights')
        return self.correlation.weight.detach().float().view(self.grid, self.grid)

    def _draw(self, images: Tensor) -> Tensor:
        # In half precision so many patches would tie that those at the top would stay visible more often.
        return torch.rand(len(images), self.grid**2, device=images.device, dtype=torch.float32)

    def _predict(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f"images of {images.shape[-2]} × {images.shape[-1]} px: MaCo hides and reconstructs patches of "
                f"{self.image_size} px images; set data.image_size and model.image_size alike"
            )
        tokens, _, _ = patch_tokens(self.vit, self._encoder_input(images))
        visible, mask, restore = maco.random_masking(tokens, self.mask_ratio, noise)
        encoded = encode_patches(self.vit, visible)
        return encoded, mask, self.decoder(encoded, restore)

    def _masked(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        encoded, mask, predicted = self._predict(images, noise)
        error = maco.reconstruction_errors(predicted, images, self.target_patch, self.normalise_target)
        outputs = {
            "image": self._pooled(encoded),
            # Every sample has as many hidden patches, so the mean of these is the mean over all hidden patches.
            "reconstruction": (error * mask).sum(1) / mask.sum(1).clamp_min(1),
        }
        if self.correlation is not None:
            with torch.autocast(images.device.type, enabled=False):
                outputs["logit"] = self.correlation((1 - mask).to(self.correlation.weight.dtype))[:, 0]
        return outputs

    def encode(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Override: draw the noise of the masks for the whole batch, however it is cut into chunks."""
        if self.training and "mask_noise" not in batch:
            batch = {**batch, "mask_noise": self._draw(batch["image"])}
        return super().encode(batch)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encode a batch; in training patches of large ``mask_noise`` (B, patches), if the batch has it, are hidden.

        Returns:
            ``image`` and, with a text side, ``text``, both (B, d); in training also ``reconstruction`` (B,), the mean
            squared error of a sample's hidden patches, and ``logit`` (B,), the correlation with the report.
        """
        images = batch["image"]
        if self.training:
            noise = batch.get("mask_noise")
            outputs = self._masked(images, self._draw(images) if noise is None else noise)
        else:
            outputs = {"image": self.encode_images(images)}
        if self.has_text:
            outputs["text"] = self.encode_tokens(batch["input_ids"], batch["attention_mask"])
        return outputs

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """``reconstruction`` and, unless there is none, ``contrast``, both weighted."""
        outputs = self(batch) if outputs is None else outputs
        if "reconstruction" not in outputs:  # evaluation, where forward hides nothing
            outputs = {**outputs, **self._masked(batch["image"], self._fixed(batch))}
        reconstruction = outputs["reconstruction"].mean()
        if not self.has_text:
            return {"reconstruction": reconstruction}
        return maco.weighted_terms(reconstruction, self._contrast(outputs), self.variant, self.balance)

    def _contrast(self, outputs: dict[str, Tensor]) -> Tensor:
        image, text = outputs["image"], outputs["text"]
        if self.correlation is None:
            return self.contrast(image, text, temperature=self.temperature, image_to_text=0.5, text_to_image=0.5)
        self._need_two(len(image))
        # Groups and weights run over the batch of all ranks, so every rank computes the whole loss.
        image, text, logit = (distributed.all_gather(x) for x in (image, text, outputs["logit"]))
        if self.variant == "official":
            return maco.contrast_official(image, text, logit, self.logit_scale)
        return maco.contrast_paper(image, text, logit, self.temperature, self.group, self.tau1, self.tau2)

    def _fixed(self, batch: dict[str, Any]) -> Tensor:
        index = batch.get("index")
        index = torch.arange(len(batch["image"])) if index is None else index
        return fixed_noise(index.to(batch["image"].device), self.grid**2)

    def on_fit_start(self) -> None:
        """Compile what training runs through, which the image encoder's own forward is not part of."""
        super().on_fit_start()
        if self.compile_encoders:
            options = {"backend": self.compile_encoders} if isinstance(self.compile_encoders, str) else {}
            for part in (self.vit.blocks, self.decoder.blocks):
                part.compile(**options)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log τ3, and keep the paper variant's at 0.01 or more, as CLIP does."""
        if not self.has_text:
            return
        if self.variant == "paper":
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))
        self.log("train/temperature", self.temperature.detach(), on_step=True, on_epoch=False)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Hide patches and predict them; with ``normalise_target`` they get mean and deviation of the true ones.

        Args:
            images: (B, 3, S, S) of the training size.
            noise: (B, patches), of which the least stay visible; the same masks at every call if None.
        """
        if noise is None:
            noise = fixed_noise(torch.arange(len(images), device=images.device), self.grid**2)
        _, mask, predicted = self._predict(images, noise)
        predicted = predicted.float()
        if self.normalise_target:
            variance, mean = torch.var_mean(maco.patchify(images.float(), self.target_patch), dim=-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        whole = maco.unpatchify(predicted, self.target_patch)
        hidden = upsample(mask.view(-1, 1, self.grid, self.grid), (images.shape[-2], images.shape[-1]), "nearest")
        return Reconstruction(whole, hidden, torch.where(hidden > 0, whole, images.float()))

    @torch.no_grad()
    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """``similarity to the report``, ``correlation weight`` and ``reconstruction``: (B, 1, S, S) each in [0, 1].

        The similarity is weighted by :meth:`patch_weights` where there are weights, as in the paper's grounding; the
        correlation weight is the same for all images; the hidden patches are reconstructed amid the visible ones.
        """
        images = batch["image"]
        size = (images.shape[-2], images.shape[-1])
        maps: dict[str, Tensor] = {}
        if self.has_text:
            report = F.normalize(self.encode_tokens(batch["input_ids"], batch["attention_mask"]).float(), dim=-1)
            similarity = torch.einsum("bdhw,bd->bhw", self.embed_patches(images), report)[:, None]
            if self.correlation is not None:
                weight = F.interpolate(self.patch_weights()[None, None], size=similarity.shape[-2:], mode="bilinear")
                similarity = similarity * weight
            maps["similarity to the report"] = stretch(similarity, size)
        if self.correlation is not None:
            weights = stretch(self.correlation_map()[None, None], size, "nearest")
            maps["correlation weight"] = weights.expand(len(images), -1, -1, -1)
        if size == (self.image_size, self.image_size):
            rebuilt = self.reconstruct(images, self._fixed(batch)).pasted.mean(1, keepdim=True)
            maps["reconstruction"] = min_max(rebuilt)
        return maps
