"""Image-text contrast as pure functions of embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor, offset: int = 0) -> Tensor:
    """Mean cross-entropy of each query against all keys, by cosine similarity; ln n when all are equal.

    ``−1/b Σ_i log( exp(cos(q_i, k_{i+offset})/τ) / Σ_j exp(cos(q_i, k_j)/τ) )``: G2D Eq. 1 with q images and
    k reports. Computed in float32 whatever the autocast precision, because 1/τ magnifies rounding.

    Args:
        queries: (b, d), of any length.
        keys: (n, d) with n ≥ b.
        temperature: τ > 0.
        offset: column of the positive of row 0; the first global row of this rank when keys are gathered.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, torch.float32)
        logits = F.normalize(queries.to(dtype), dim=-1) @ F.normalize(keys.to(dtype), dim=-1).T / temperature
        targets = torch.arange(offset, offset + len(queries), device=logits.device)
        return F.cross_entropy(logits, targets)


def image_text_contrast(
    image: Tensor,
    text: Tensor,
    *,
    temperature: float | Tensor,
    image_to_text: float = 1.0,
    text_to_image: float = 1.0,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Weighted sum of the two directions of :func:`info_nce`.

    Weights of (1, 1) are the official loss of G2D and MGCA, (1, 0) G2D's Eq. 1 as printed, (0.75, 0.25) ConVIRT's λ.

    Args:
        image: (b, d) image embeddings of this rank.
        text: (b, d) report embeddings of this rank; row i belongs to image i.
        temperature: τ > 0.
        image_to_text: weight of images choosing among reports.
        text_to_image: weight of reports choosing among images.
        all_image: (n, d) of all ranks; None takes this rank's.
        all_text: (n, d) of all ranks; None takes this rank's.
        offset: first global row of this rank.
    """
    loss = image.new_zeros((), dtype=torch.promote_types(image.dtype, torch.float32))
    if image_to_text:
        loss = loss + image_to_text * info_nce(image, text if all_text is None else all_text, temperature, offset)
    if text_to_image:
        loss = loss + text_to_image * info_nce(text, image if all_image is None else all_image, temperature, offset)
    return loss
