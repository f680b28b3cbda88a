"""A method in its smallest form: two encoders, two linear heads, one contrast."""

from typing import Any, ClassVar

from torch import Tensor, nn

from medvlp.methods.base import PretrainModule


class TemplateMethod(PretrainModule):
    """CLIP with fixed temperature: mean-pooled image and report, symmetric contrast.

    Args:
        embed_dim: joint dimension.
        temperature: divisor of the cosines.
        options: encoders, optimiser and whatever else :class:`~medvlp.methods.base.PretrainModule` takes.
    """

    name: ClassVar[str] = "template"

    def __init__(self, embed_dim: int = 128, temperature: float = 0.07, **options: Any) -> None:
        super().__init__(**options)
        self.temperature = temperature
        self.image_head = nn.Linear(self.image_encoder.out_channels, embed_dim)
        self.text_head = nn.Linear(self.text_encoder.width, embed_dim)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, embed_dim)."""
        return self.image_head(self.image_encoder(images)[-1].mean((2, 3)))

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, embed_dim)."""
        return self.text_head(self.text_encoder(input_ids, attention_mask)[1])

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Embeddings ``image`` and ``text``, (B, embed_dim)."""
        return {
            "image": self.encode_images(batch["image"]),
            "text": self.encode_tokens(batch["input_ids"], batch["attention_mask"]),
        }

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """``contrast``, half of both directions."""
        out = self(batch) if outputs is None else outputs
        contrast = self.contrast(
            out["image"], out["text"], temperature=self.temperature, image_to_text=0.5, text_to_image=0.5
        )
        return {"contrast": contrast}
