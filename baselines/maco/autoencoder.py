"""The parts of MaCo's masked autoencoder that are not timm's: an encoder of visible patches, and the decoder."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from medvlp_baselines.maco.losses import position_table
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.errors import ConfigError
from medvlp.training.settings import config_from

_NEEDS_TRANSFORMER = (
    "MaCo hides patches of a plain vision transformer with a class token and a position table; set image.name: "
    "vit_base_patch16_224, or another vit_*_patch*"
)


def encoder_config(image: ImageEncoderConfig | None, side: int) -> ImageEncoderConfig:
    """Return the settings of an image encoder for images of ``side`` pixels, with its final norm."""
    given = ImageEncoderConfig("vit_base_patch16_224") if image is None else config_from(ImageEncoderConfig, image)
    if given.upsample_to is not None:
        raise ConfigError("image.upsample_to: MaCo's encoder takes images as they come; leave it at null")
    if not given.name.startswith(("vit_", "deit_")):  # timm would complain of an option that nobody set
        raise ConfigError(_NEEDS_TRANSFORMER)
    return replace(given, final_norm=True, options={**given.options, "img_size": side})


def transformer_of(encoder: ImageEncoder) -> Any:
    """Return the vision transformer of an image encoder.

    Raises:
        ConfigError: it is none, or lacks the layout of a masked autoencoder: one class token with a row of the
            position table, and no register tokens.
    """
    vit: Any = getattr(encoder.model, "model", None)
    plain = isinstance(vit, VisionTransformer) and vit.has_class_token and vit.num_prefix_tokens == 1
    if not plain or vit.no_embed_class or vit.pos_embed is None:
        raise ConfigError(_NEEDS_TRANSFORMER)
    return vit


def patch_tokens(vit: Any, images: Tensor) -> tuple[Tensor, int, int]:
    """Return the patches of images (B, 3, H, W) with their positions, (B, h · w, D), and h and w.

    A position table of another grid is interpolated (bicubic).
    """
    tokens = vit.patch_embed(images.to(vit.pos_embed.dtype))
    height, width = tokens.shape[1:3] if tokens.ndim == 4 else vit.patch_embed.grid_size
    table, grid = vit.pos_embed, vit.patch_embed.grid_size
    if (height, width) != tuple(grid):
        table = resample_abs_pos_embed(table, new_size=[height, width], old_size=list(grid), num_prefix_tokens=1)
    if tokens.ndim == 4:
        tokens = tokens.flatten(1, 2)
    return tokens + table[:, 1:], height, width


def encode_patches(vit: Any, tokens: Tensor) -> Tensor:
    """Send class token and given patches through all blocks and the last norm: (B, n, D) → (B, 1 + n, D)."""
    first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(tokens), -1, -1)
    tokens = vit.norm_pre(vit.pos_drop(torch.cat([first.to(tokens.dtype), tokens], 1)))
    return vit.norm(vit.blocks(tokens))


class Decoder(nn.Module):
    """Predicts all patches from the encoded visible ones: Linear → transformer blocks → LayerNorm → Linear.

    Args:
        width: channels of the encoder.
        grid: patches along each side.
        dim: channels of the decoder, a multiple of 4 and of ``heads``.
        depth: blocks.
        heads: attention heads.
        out: values per patch, p² · 3.
        positions: which fixed table, see :func:`~medvlp_baselines.maco.losses.position_table`.
    """

    positions: Tensor

    def __init__(
        self, width: int, grid: int, dim: int, depth: int, heads: int, out: int, positions: Literal["mae", "official"]
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads or depth < 1:
            raise ConfigError(f"decoder_dim {dim}, decoder_depth {depth}, decoder_heads {heads}: heads must divide dim")
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", position_table(dim, grid, positions)[None], persistent=False)
        self.blocks = nn.Sequential(*[Block(dim, heads, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(dim)
        self.head = nn.Linear(dim, out)

    def forward(self, encoded: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict (B, L, out), in the order of the patches.

        Args:
            encoded: (B, 1 + kept, D), the class token first, then the visible patches in the order of the mask's noise.
            ids_restore: (B, L), see :func:`~medvlp_baselines.maco.losses.random_masking`.
        """
        tokens = self.embed(encoded)
        batch, count = ids_restore.shape
        hidden = self.mask_token.to(tokens.dtype).expand(batch, count + 1 - tokens.shape[1], -1)
        patches = torch.cat([tokens[:, 1:], hidden], 1)
        patches = patches.gather(1, ids_restore[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :1], patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 1:])


def initialise(module: nn.Module) -> None:
    """Re-initialise as masked autoencoders do: Xavier-uniform linear maps, zero biases, unit norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def initialise_transformer(vit: Any, positions: Literal["mae", "official"]) -> None:
    """:func:`initialise` a vision transformer, its class token (normal, σ 0.02), patches and position table.

    The patch projection is Xavier-uniform on the flattened kernel.
    """
    initialise(vit)
    kernel = vit.patch_embed.proj.weight
    with torch.no_grad():
        nn.init.xavier_uniform_(flat := torch.empty(kernel.shape[0], kernel[0].numel()))
        kernel.copy_(flat.view_as(kernel))
        nn.init.normal_(vit.cls_token, std=0.02)
        vit.pos_embed.copy_(position_table(vit.pos_embed.shape[2], vit.patch_embed.grid_size[0], positions))


def shrink(images: Tensor, side: int, antialias: bool) -> Tensor:
    """Resize images (B, 3, S, S) to ``side`` pixels (bicubic), unless they are of that side."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias)


def fixed_noise(index: Tensor, length: int) -> Tensor:
    """Return noise for masks that depend on the study alone, whatever the batch: (B,) dataset rows → (B, length).

    float64 in [0, 1): a 64-bit mix (the finaliser of SplitMix64) of row and patch.
    """
    value = index[:, None].long() * length + torch.arange(length, device=index.device) + 1
    for factor, shift in ((-7046029254386353131, 30), (-4658895280553007687, 27), (-7723592293110705685, 31)):
        value = value * factor  # wraps around
        value = value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))  # a logical shift of a signed number
    return ((value >> 12) & ((1 << 52) - 1)).double() / (1 << 52)
