"""MaCo's losses and heads: masking, reconstruction, and the contrast weighted by what the mask left visible.

``variant: official`` is the released code, ``variant: paper`` the paper's equations. Contrasts are computed in float32
at least.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.errors import ConfigError, check_choice, check_range
from medvlp.losses.precision import exact

Variant = Literal["paper", "official"]


def _check_pairs(image: Tensor, text: Tensor, logit: Tensor) -> None:
    if image.shape != text.shape or image.ndim != 2 or logit.numel() != len(image):
        raise ConfigError(
            f"image and text are (n, d) and the logits (n,), not {tuple(image.shape)}, {tuple(text.shape)} and"
            f" {tuple(logit.shape)}: the text encoder may be of another width, or one of them not gathered"
        )


def random_masking(tokens: Tensor, ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a random part of each sample's patches: those of least noise, in the order of their noise, as MAE does.

    Args:
        tokens: (B, L, D) patches, without the class token.
        ratio: share removed, in [0, 1); ⌊L (1 − ratio)⌋ are kept, at least one.
        noise: (B, L) uniform numbers; drawn if None.

    Returns:
        Kept tokens (B, kept, D); mask (B, L) float, 0 kept and 1 removed, in patch order; ids_restore (B, L) int64,
        the rank of each patch in the order of noise.
    """
    batch, length, dim = tokens.shape
    kept = int(length * (1 - ratio))
    if not 0 <= ratio < 1 or kept < 1:
        raise ConfigError(f"mask ratio {ratio} of {length} patches: it must lie in [0, 1) and keep at least one patch")
    if noise is None:
        noise = torch.rand(batch, length, device=tokens.device, dtype=torch.float32)
    order = noise.argsort(dim=1, stable=True)
    ids_restore = order.argsort(dim=1)
    visible = tokens.gather(1, order[:, :kept, None].expand(-1, -1, dim))
    return visible, (ids_restore >= kept).to(torch.float32), ids_restore


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, H/patch · W/patch, patch² · C), row by row; channels are fastest.

    ``patch`` is a side in pixels. For super-resolution (SR = 1), whose targets come from an image of twice the
    encoder's side, it is twice the encoder's patch, so that the number of patches is the same.
    """
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ConfigError(f"patches of {patch} pixels do not divide an image of {height} × {width}")
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, channels, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, channels: int = 3) -> Tensor:
    """Invert :func:`patchify` for square images: (B, n², patch² · C) → (B, C, n · patch, n · patch)."""
    batch, count, length = patches.shape
    side = round(count**0.5)
    if side * side != count or length != patch * patch * channels:
        raise ConfigError(f"{count} patches of {length} values are no square image of patches {patch}² · {channels}")
    grid = patches.reshape(batch, side, side, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch, side * patch)


def reconstruction_errors(prediction: Tensor, images: Tensor, patch: int, normalise_target: bool = False) -> Tensor:
    """Return the mean squared error of each patch, (B, L), float32 at least.

    Args:
        prediction: (B, L, patch² · C).
        images: (B, C, H, W) targets; with super-resolution the image of twice the encoder's side.
        patch: of :func:`patchify`.
        normalise_target: subtract each target patch's mean and divide by its standard deviation (variance with n − 1,
            plus 1e-6). Off in the released command.
    """
    target = patchify(images, patch)
    if prediction.shape != target.shape:
        raise ConfigError(f"the decoder predicts {tuple(prediction.shape)}, the target is {tuple(target.shape)}")
    prediction, target = exact(prediction, target)
    if normalise_target:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    return (prediction - target).square().mean(-1)


def reconstruction_loss(
    prediction: Tensor, images: Tensor, mask: Tensor, patch: int, normalise_target: bool = False
) -> Tensor:
    """Average :func:`reconstruction_errors` over the removed patches (``mask`` 1) of the batch; 0 if there is none."""
    error = reconstruction_errors(prediction, images, patch, normalise_target)
    return (error * mask).sum() / mask.sum().clamp_min(1)


def image_embedding(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project visible tokens (B, 1 + kept, D) and average them without the class token, which comes first: (B, d)."""
    return F.linear(tokens[:, 1:].mean(1), weight, bias)  # projection and mean commute


def contrast_official(image: Tensor, text: Tensor, logit: Tensor, scale: Tensor | float) -> Tensor:
    """Return the released contrast: scaled and weighted cross-entropies of both directions, mean of the four.

    With ``s = softplus(logit)`` and ``ℓ = scale · cos``: row i of ℓ and of ℓᵀ is multiplied by s_i in two terms; in the
    other two the cross-entropies of ℓ and ℓᵀ are averaged with the weights s, which get no gradient there.

    Args:
        image: (n, d), of all ranks if there are several: pass what ``medvlp.distributed.all_gather`` gives. Every
            rank then has the same loss, and the averaged gradient is the global one.
        text: (n, d).
        logit: (n,) or (n, 1), a linear function of the visible patches.
        scale: factor of the cosines, 1/0.03 at first (a plain learnable parameter, not its logarithm, never clamped).

    Returns:
        A scalar; ln n for equal cosines (whatever the weights), 0 (without gradient) for n = 1.
    """
    _check_pairs(image, text, logit)
    with torch.autocast(image.device.type, enabled=False):
        image, text, logit = exact(image, text, logit)
        logits = scale * (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T)
        weight = F.softplus(logit.reshape(-1))
        target = torch.arange(len(logits), device=logits.device)
        share = weight.detach() / weight.detach().sum()
        terms = []
        for matrix in (logits, logits.T):
            terms.append(F.cross_entropy(weight[:, None] * matrix, target))
            terms.append((share * F.cross_entropy(matrix, target, reduction="none")).sum())
        return torch.stack(terms).mean()


def paper_weights(logit: Tensor, group: int = 16, tau1: float = 1.0, tau2: float = 16.0) -> tuple[Tensor, Tensor]:
    """Return the paper's w_t and w_l (Eq. 2), softmax functions of the logit within mini-groups of D samples.

    D is ``group``: consecutive samples form a group, the last one may be smaller. w_t (n,), in (1, e), is exp of the
    softmax of logit / τ₁; w_l (n,), without gradient, is the softmax of logit / τ₂, of sum 1 in each group.
    """
    check_range("[1, inf)", group=group)
    (logit,) = exact(logit)
    flat = logit.reshape(-1)
    padded = F.pad(flat, (0, -len(flat) % group), value=torch.finfo(flat.dtype).min / 2).view(-1, group)
    temperature = (padded / tau1).softmax(1).flatten()[: len(flat)].exp()
    loss = (padded.detach() / tau2).softmax(1).flatten()[: len(flat)]
    return temperature, loss


def contrast_paper(
    image: Tensor,
    text: Tensor,
    logit: Tensor,
    temperature: Tensor | float,
    group: int = 16,
    tau1: float = 1.0,
    tau2: float = 16.0,
) -> Tensor:
    """Return the paper's Eq. 3: image → text, cosines divided by w_t · τ₃, each sample's term times w_l.

    The paper does not say how samples are put together. w_l sums to one in a mini-group, so a group's loss is the sum
    of its terms, and the batch's the mean over groups (by their sizes, if the last is smaller). ``temperature`` is τ₃,
    learnable, 0.03 at first; see :func:`contrast_official` for the inputs and :func:`paper_weights` for the others.

    Returns:
        A scalar; ln n for equal cosines, 0 (without gradient) for n = 1.
    """
    _check_pairs(image, text, logit)
    with torch.autocast(image.device.type, enabled=False):
        image, text = exact(image, text)
        softness, weight = paper_weights(logit, group, tau1, tau2)
        cosine = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        target = torch.arange(len(cosine), device=cosine.device)
        terms = F.cross_entropy(cosine / (softness[:, None] * temperature), target, reduction="none")
        size = (len(cosine) - target // group * group).clamp_max(group)
        return (terms * weight * size).sum() / len(cosine)


def weighted_terms(
    reconstruction: Tensor, contrast: Tensor, variant: Variant = "paper", balance: float = 0.9
) -> dict[str, Tensor]:
    """Weight the two terms by λ = ``balance`` and 1 − λ (paper), or 1 and 1: the released code ignores λ."""
    check_choice("variant", variant, ("paper", "official"))
    first, second = (balance, 1 - balance) if variant == "paper" else (1.0, 1.0)
    return {"reconstruction": first * reconstruction, "contrast": second * contrast}


def position_table(dim: int, side: int, variant: Literal["mae", "official"] = "mae") -> Tensor:
    """Return fixed sine-cosine positions of a square grid, after a row of zeros for the class token.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, of the
    coordinate times 10000^(−e), where e runs over [0, 1) in MAE and, by a slip in the released MaCo code, over
    [0, ¼). A loaded MAE checkpoint replaces the encoder's table, but not that of a decoder of another width.

    Returns (1 + side², dim) float32, row by row; ``dim`` must be a multiple of 4.
    """
    if dim % 4 or dim < 4:
        raise ConfigError(f"sine-cosine positions need a multiple of 4 channels, not {dim}")
    check_choice("variant", variant, ("mae", "official"))
    half, frequencies = dim // 2, dim // 4
    span = frequencies if variant == "mae" else 2 * half
    omega = 10000.0 ** -(torch.arange(frequencies, dtype=torch.float64) / span)
    row, column = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    angles = [coordinate.reshape(-1, 1) * omega for coordinate in (column, row)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return torch.cat([table.new_zeros(1, dim), table]).float()


def grounding_weights(position_weight: Tensor, temperature: float = 0.02) -> Tensor:
    """Return the weight of each patch in phrase grounding: softmax of the correlation weights over the positions, (L,).

    ``position_weight`` is that of the linear function of the visible patches, (1, L) or (L,); τ is 0.02 in the code and
    in the mIoU of the paper's figure, 0.01 for its CNR. The released grounding multiplies the patch embeddings of the
    unmasked image by the result before the similarity map.
    """
    (weight,) = exact(position_weight.detach())
    return (weight.reshape(-1) / temperature).softmax(0)
