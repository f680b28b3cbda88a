"""ConVIRT: contrastive learning of medical visual representations from paired images and text."""

from typing import Any, ClassVar, Literal

from medvlp_baselines.mgca.module import RELEASED_OPTIM, RELEASED_TEXT
from torch import Tensor

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.projection import mlp_projector, normed_projector
from medvlp.encoders.text import TextEncoderConfig
from medvlp.methods.base import PretrainModule
from medvlp.methods.embeddings import unit_length
from medvlp.training.optim import OptimConfig


class ConVIRT(PretrainModule):
    """Bidirectional contrast of an image and its report: ``λ·NCE(v → u) + (1 − λ)·NCE(u → v)``.

    There is no official training code. ``variant: paper`` is the paper's form (λ = 0.75, τ = 0.1, 512 dimensions,
    max-pooled ClinicalBERT whose embeddings and first 6 layers are frozen); ``variant: mgca`` is the re-implementation
    in the MGCA repository, on which several tables rest (plain sum of both directions, τ = 0.07, 128 dimensions,
    batch-normed heads, images stretched to 299 px, [CLS] of 6 BERT layers without word order, contrast per rank). The
    random sentence per report and the augmentations are the datamodule's: ``text_sampling: sentence``,
    ``transform: convirt``.

    Args:
        variant: "paper" or "mgca".
        image: image encoder; ResNet-50 by default, of the size that the variant says.
        text: text encoder; Bio_ClinicalBERT by default, cut, pooled and frozen as the variant says.
        optim: optimiser and schedule; by default Adam at 1e-4 with halving on a plateau (paper), or AdamW at 2e-5
            with 40 % warm-up and cosine (mgca).
        image_size: side of the images in pixels.
        prompts: zero-shot prompt set for validation.
        embed_dim: joint dimension; the variant's if None.
        temperature: τ; the variant's if None.
        lambda_image: λ of the paper variant, weight of image → report.
        options: further arguments of :class:`~medvlp.methods.base.PretrainModule`.
    """

    name: ClassVar[str] = "convirt"

    def __init__(
        self,
        variant: Literal["paper", "mgca"] = "paper",
        image: ImageEncoderConfig | None = None,
        text: TextEncoderConfig | None = None,
        optim: OptimConfig | None = None,
        image_size: int = 224,
        prompts: str | None = "chexpert",
        embed_dim: int | None = None,
        temperature: float | None = None,
        lambda_image: float = 0.75,
        **options: Any,
    ) -> None:
        paper = variant == "paper"
        if paper:
            text = text or TextEncoderConfig(
                pretrained="emilyalsentzer/Bio_ClinicalBERT", pooling="max", freeze_layers=6, freeze_embeddings=True
            )
            optim = optim or OptimConfig(
                optimizer="adam", lr=1e-4, weight_decay=1e-6, decay_all=True, schedule="plateau"
            )
        else:
            image = image or ImageEncoderConfig(upsample_to=299)
            text, optim = text or RELEASED_TEXT, optim or RELEASED_OPTIM
        super().__init__(image=image, text=text, optim=optim, image_size=image_size, prompts=prompts, **options)
        self.global_contrast = paper
        self.temperature = temperature or (0.1 if paper else 0.07)
        self.weights = (lambda_image, 1 - lambda_image) if paper else (1.0, 1.0)
        dim = embed_dim or (512 if paper else 128)
        width, text_width = self.image_encoder.out_channels, self.text_encoder.width
        self.image_head = mlp_projector(width, dim, dim) if paper else normed_projector(width, dim)
        self.text_head = mlp_projector(text_width, dim, dim) if paper else normed_projector(text_width, dim)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, d): projected global average of the last level."""
        return self.image_head(self.image_encoder(images)[-1].mean((2, 3)))

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, d): projected report vector."""
        return self.text_head(self.text_encoder(input_ids, attention_mask)[1])

    def embed_patches(self, images: Tensor) -> Tensor:
        """Cells of the last level through the image head: (B, d, h, w), L2-normalised."""
        cells = self.image_encoder(images)[-1].permute(0, 2, 3, 1)
        projected = self.image_head(cells.flatten(0, 2)).view(*cells.shape[:3], -1)
        return unit_length(projected.permute(0, 3, 1, 2), self, dim=1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Embeddings ``image`` and ``text``, (B, d)."""
        return {
            "image": self.encode_images(batch["image"]),
            "text": self.encode_tokens(batch["input_ids"], batch["attention_mask"]),
        }

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """``contrast``: λ-weighted, or the plain sum of both directions."""
        outputs = self(batch) if outputs is None else outputs
        weights = dict(zip(("image_to_text", "text_to_image"), self.weights, strict=True))
        return {"contrast": self.contrast(outputs["image"], outputs["text"], temperature=self.temperature, **weights)}
