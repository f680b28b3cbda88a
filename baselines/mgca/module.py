"""MGCA: multi-granularity cross-modal alignment of radiographs and reports (Wang et al., NeurIPS 2022)."""

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from medvlp_baselines.mgca.heads import ProjectionHead, repeat_words
from medvlp_baselines.mgca.losses import CrossAttention, MergedReport, Variant, merge_report, soft_match, token_loss
from medvlp_baselines.mgca.prototypes import normalise_prototypes_, prototype_loss, prototype_scores
from torch import Tensor, nn

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.errors import ConfigError, check_choice, check_range
from medvlp.losses.precision import exact
from medvlp.methods.base import PretrainModule
from medvlp.methods.embeddings import unit_length
from medvlp.scoring.heatmaps import stretch
from medvlp.training.optim import OptimConfig


class _Variant(NamedTuple):
    temperature: float
    token_temperature: float
    direction: float
    global_contrast: bool
    text: TextEncoderConfig


_TEXT = TextEncoderConfig(pretrained="emilyalsentzer/Bio_ClinicalBERT", max_length=112, dropout=True)
RELEASED_TEXT = replace(_TEXT, padding="max_length", keep_layers=6, positions="zero", token_types=False)
RELEASED_OPTIM = OptimConfig(lr=2e-5, weight_decay=0.05, decay_all=True, warmup=0.4, min_lr=1e-8)
_VARIANTS = {
    "paper": _Variant(temperature=0.1, token_temperature=0.07, direction=0.5, global_contrast=True, text=_TEXT),
    "official": _Variant(
        temperature=0.07, token_temperature=0.1, direction=1.0, global_contrast=False, text=RELEASED_TEXT
    ),
}


class ImageParts(NamedTuple):
    """Features of images from an image encoder."""

    whole: Tensor  # (B, D)
    cells: Tensor  # (B, D', h, w)
    attention: Tensor | None  # (B, h·w) that the class token pays to the cells, mean over heads


class MGCA(PretrainModule):
    """Alignment at three levels: pairs (ITA), tokens within a pair (CTA), and prototypes across pairs (CPA).

    ``L = λ₁ L_ITA + λ₂ L_CTA + λ₃ L_CPA`` (Eq. 10). Where paper and released code differ, ``variant`` decides; each
    argument left at None takes the variant's value:

    =====================  =================================  ==========================================
    what                   paper                              official
    =====================  =================================  ==========================================
    instance contrast      mean of both directions, τ₁ 0.1    sum of both directions, 0.07
    token temperature      τ₂ 0.07                            0.1
    token attention        learned Q, K, V, O (Eq. 4)         cosines of the tokens over τ₂, no weights
    token weights          attention as it is, over 2 N S     clipped to 10 %–90 % quantiles, of sum 1
    token term             half of both sides                 sum of both sides
    padding among words    takes no part                      in the norms, and a negative
    [CLS]'s attention      of each piece to that piece        shifted by one piece
    negatives, Sinkhorn    all ranks                          this rank's
    BERT                   all layers, with word order        6 layers, no word order, padded to 112
    =====================  =================================  ==========================================

    Where the paper is silent both variants do as the released code does: heads, Sinkhorn's ε = 0.05 and 3 iterations,
    frozen prototypes in the first epoch, dropout in BERT, decay of all weights. Input size, report cleaning, batch and
    epochs are the datamodule's and the trainer's: see ``experiments/pretrain/mgca/``.

    The tokens of a vision transformer with a class token are those of its last block (set ``image.final_norm``); of
    a network with a pyramid they are the cells of the last level but one, and the image is the mean of the last.

    Args:
        variant: "paper" or "official".
        image: image encoder; ViT-B/16 with DeiT's weights by default, both variants' own choice.
        text: text encoder; Bio_ClinicalBERT by default, cut and padded as the variant says.
        optim: optimiser and schedule; AdamW at 2e-5 with 40 % warm-up and cosine by default (20 of 50 epochs).
        image_size: side of the images in pixels.
        prompts: zero-shot prompt set for validation.
        embed_dim: joint dimension d.
        temperature: τ₁.
        token_temperature: τ₂.
        prototype_temperature: τ₃.
        num_prototypes: K.
        instance_weight: λ₁; 0 leaves the term out (Table 4).
        token_weight: λ₂; 0 leaves the term and its heads out.
        prototype_weight: λ₃; 0 leaves the term and the prototypes out.
        freeze_prototypes: epochs at the start in which the prototypes are not trained.
        head_dim: channels inside of the projection heads.
        options: further arguments of :class:`~medvlp.methods.base.PretrainModule`.
    """

    name: ClassVar[str] = "mgca"

    @property
    def feature_pool(self) -> str:
        """What the released code gives to its classifiers: the class token of a ViT, the mean of a CNN's last level."""
        return "token" if self.image_encoder.has_class_token else "mean"

    def __init__(
        self,
        variant: Variant = "paper",
        image: ImageEncoderConfig | None = None,
        text: TextEncoderConfig | None = None,
        optim: OptimConfig | None = None,
        image_size: int = 224,
        prompts: str | None = "chexpert",
        embed_dim: int = 128,
        temperature: float | None = None,
        token_temperature: float | None = None,
        prototype_temperature: float = 0.2,
        num_prototypes: int = 500,
        instance_weight: float = 1.0,
        token_weight: float = 1.0,
        prototype_weight: float = 1.0,
        freeze_prototypes: int = 1,
        head_dim: int = 2048,
        **options: Any,
    ) -> None:
        check_choice("variant", variant, _VARIANTS)
        weights = {"instance": instance_weight, "token": token_weight, "prototype": prototype_weight}
        check_range("[0, inf)", **{f"{name}_weight": weight for name, weight in weights.items()})
        check_range("[2, inf)", num_prototypes=num_prototypes)
        if instance_weight + prototype_weight == 0:
            raise ConfigError(
                "instance_weight or prototype_weight must be positive: the token term alone trains no embedding of "
                "whole images and reports"
            )
        settings = _VARIANTS[variant]
        super().__init__(
            image=image or ImageEncoderConfig(name="deit_base_patch16_224", pretrained=True, final_norm=True),
            text=text or settings.text,
            optim=optim or RELEASED_OPTIM,
            image_size=image_size,
            prompts=prompts,
            **options,
        )
        if variant == "official" and token_weight and self.text_config.padding != "max_length":
            raise ConfigError(
                "variant official aligns tokens as the released code does, which only works with padding behind every "
                "report: set text.padding: max_length (the code: text.max_length: 112)"
            )
        self.variant: Variant = variant
        self.global_contrast = settings.global_contrast
        self.direction = settings.direction
        self.temperature = settings.temperature if temperature is None else temperature
        self.token_temperature = settings.token_temperature if token_temperature is None else token_temperature
        self.prototype_temperature = prototype_temperature
        self.weights = weights
        self.freeze_prototypes = freeze_prototypes
        encoder, width = self.image_encoder, self.text_encoder.width
        self._check_patches(encoder.input_size)
        # A pyramid's cells come from the level before the last; all levels of a transformer have the same grid.
        coarser = len(encoder.reductions) > 1 and encoder.reductions[-2] < encoder.reductions[-1]
        self.cell_level = -2 if coarser else -1
        self.image_head = ProjectionHead(encoder.out_channels, embed_dim, head_dim)
        self.text_head = ProjectionHead(width, embed_dim, head_dim)
        # Only what enters the loss is built: DistributedDataParallel waits for the gradient of every parameter.
        self.patch_head: ProjectionHead | None = None
        self.word_head: ProjectionHead | None = None
        self.patch_to_word: CrossAttention | None = None
        self.word_to_patch: CrossAttention | None = None
        self.prototypes: nn.Linear | None = None
        if token_weight:
            self.patch_head = ProjectionHead(encoder.channels[self.cell_level], embed_dim, head_dim)
            self.word_head = ProjectionHead(width, embed_dim, head_dim)
            if variant == "paper":
                self.patch_to_word, self.word_to_patch = CrossAttention(embed_dim), CrossAttention(embed_dim)
        if prototype_weight:
            self.prototypes = nn.Linear(embed_dim, num_prototypes, bias=False)
            normalise_prototypes_(self.prototypes.weight)

    def _check_patches(self, side: int) -> None:
        patch = self.image_encoder.reductions[-1]
        if self.image_encoder.has_class_token and side % patch:
            raise ConfigError(
                f"images of {side} px do not divide into patches of {patch}; set image_size (of model and data) to "
                f"{max(1, side // patch) * patch}"
            )

    def _image_parts(self, images: Tensor, attention: bool) -> ImageParts:
        encoder = self.image_encoder
        if not encoder.has_class_token:
            pyramid = encoder(images)
            return ImageParts(pyramid[-1].mean((2, 3)), pyramid[self.cell_level], None)
        self._check_patches(encoder.upsample_to or images.shape[-1])
        features = encoder.tokens(images, attention=attention, attention_rows=1)
        cells, paid = features.pyramid[-1], None
        if features.attention is not None:
            paid = features.attention[:, :, 0].mean(1)[:, -cells.shape[2] * cells.shape[3] :]
        return ImageParts(features.class_token, cells, paid)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, d): projected class token, or projected mean of the last level."""
        return self.image_head(self._image_parts(images, attention=False).whole)

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, d): projected report vector."""
        return self.text_head(self.text_encoder(input_ids, attention_mask)[1])

    def embed_patches(self, images: Tensor) -> Tensor:
        """Cells of the last level through the head of whole images, (B, d, h, w): the space of :meth:`embed_text`.

        The cells that the token term aligns lie in the space of the *words* of a report instead, which no single vector
        of a text shares; :meth:`word_regions` compares those.
        """
        if self.image_encoder.has_class_token:
            self._check_patches(self.image_encoder.upsample_to or images.shape[-1])
        cells = self.image_encoder(images)[-1].permute(0, 2, 3, 1)
        projected = self.image_head(cells.flatten(1, 2)).view(*cells.shape[:3], -1)
        return unit_length(projected.permute(0, 3, 1, 2), self, dim=1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encode a batch with image, input_ids, attention_mask and word_groups.

        Returns:
            ``image`` and ``text`` (B, d); with the token term ``patches`` (B, S, d), ``words`` (B, L − 1, d),
            ``word_attention`` (B, L − 1), ``padding`` (B, L − 1) bool, and from a vision transformer
            ``patch_attention`` (B, S).
        """
        parts = self._image_parts(batch["image"], attention=bool(self.patch_head))
        image = self.image_head(parts.whole)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.patch_head is None or self.word_head is None:
            return {"image": image, "text": self.encode_tokens(ids, mask)}
        features = self.text_encoder(ids, mask, attention=True, attention_rows=1)
        assert features.attention is not None
        merged = self._merged(batch, features.tokens, features.attention)
        words = merged.words.to(features.tokens.dtype)
        if self.variant == "paper":
            words = repeat_words(words, merged.padding)
        outputs = {
            "image": image,
            "text": self.text_head(features.report),
            "patches": self.patch_head(parts.cells.flatten(2).transpose(1, 2)),
            "words": self.word_head(words),
            "word_attention": merged.attention,
            "padding": merged.padding,
        }
        if parts.attention is not None:
            outputs["patch_attention"] = parts.attention
        return outputs

    def _merged(self, batch: dict[str, Any], hidden: Tensor, attention: Tensor) -> MergedReport:
        if "word_groups" not in batch:
            raise ConfigError("the batch has no word_groups, which tell the words of a report; use a medvlp datamodule")
        if hidden.shape[1] < 2:
            raise ConfigError("reports of one token leave no word to align; set text.max_length to at least 3")
        return merge_report(hidden, attention, batch["word_groups"], batch["attention_mask"], self.variant)

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """``instance`` (Eq. 3), ``token`` (Eq. 6) and ``prototype`` (Eq. 9), weighted; those of weight 0 are absent."""
        outputs = self(batch) if outputs is None else outputs
        terms: dict[str, Tensor] = {}
        if self.weights["instance"]:
            terms["instance"] = self.contrast(
                outputs["image"],
                outputs["text"],
                temperature=self.temperature,
                image_to_text=self.direction,
                text_to_image=self.direction,
            )
        if self.weights["token"]:
            sides = token_loss(
                outputs["patches"],
                outputs["words"],
                outputs["word_attention"],
                outputs["padding"],
                patch_attention=outputs.get("patch_attention"),
                variant=self.variant,
                temperature=self.token_temperature,
                patch_to_word=self.patch_to_word,
                word_to_patch=self.word_to_patch,
            )
            terms["token"] = sides.patch + sides.word
        if self.prototypes is not None:
            terms["prototype"] = prototype_loss(
                outputs["image"],
                outputs["text"],
                normalise_prototypes_(self.prototypes.weight),
                temperature=self.prototype_temperature,
                across_ranks=self.global_contrast,
            )
        return {name: self.weights[name] * term for name, term in terms.items()}

    def on_after_backward(self) -> None:
        """Drop the prototypes' gradient, and so their decay, in the first :attr:`freeze_prototypes` epochs."""
        if self.prototypes is not None and self.current_epoch < self.freeze_prototypes:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def cluster_scores(self, embeddings: Tensor) -> Tensor:
        """Return the cosines (N, K) of images or reports (N, d) with the prototypes; the largest gives the cluster."""
        if self.prototypes is None:
            raise ConfigError("trained with prototype_weight 0, so there are no prototypes")
        return prototype_scores(embeddings, F.normalize(exact(self.prototypes.weight)[0], dim=1))

    @torch.no_grad()
    def word_regions(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return where each word of a report looks in its image (Figure 3), given :meth:`forward`'s outputs.

        (B, L − 1, h, w), each map of sum 1; those at ``padding`` are meaningless.
        """
        if "patches" not in outputs:
            raise ConfigError("trained with token_weight 0, so words and regions are not aligned")
        with torch.autocast(outputs["words"].device.type, enabled=False):
            words, patches = (F.normalize(side, dim=-1) for side in exact(outputs["words"], outputs["patches"]))
            if self.word_to_patch is not None:
                weights = self.word_to_patch.weights(words, patches)
            else:
                weights = soft_match(words, patches, self.token_temperature)[0]
        side = round(weights.shape[-1] ** 0.5)
        return weights.unflatten(-1, (side, side))

    @torch.no_grad()
    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """``regions of the words`` and, of a vision transformer, ``class token's attention``: (B, 1, S, S) in [0, 1].

        Each word counts as much as [CLS] attends to it. Without the token term: each cell's cosine with the report.
        """
        if self.patch_head is None:
            return super().explain(batch)
        outputs = self(batch)
        regions = self.word_regions(outputs)
        weight = outputs["word_attention"].masked_fill(outputs["padding"], 0)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        maps = {"regions of the words": torch.einsum("bl,blhw->bhw", weight.to(regions.dtype), regions)}
        if "patch_attention" in outputs:
            maps["class token's attention"] = outputs["patch_attention"].unflatten(1, regions.shape[2:])
        size = batch["image"].shape[-1]
        return {title: stretch(values[:, None].float(), size) for title, values in maps.items()}
