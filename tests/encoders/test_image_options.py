"""Stretched images, class tokens, attention and position tables of image encoders, against timm itself."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Attention
from torch.utils._python_dispatch import TorchDispatchMode

from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.errors import CheckpointError, ConfigError


def images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_stretched_images_have_the_cells_of_mgca_and_gloria():
    encoder = ImageEncoder(ImageEncoderConfig("resnet18", upsample_to=299), 224).eval()
    with torch.no_grad():
        levels = encoder(images(1, 224))
        stretched = F.interpolate(images(1, 224), size=(299, 299), mode="bilinear", align_corners=True)
        wanted = encoder.model(stretched)
    assert [level.shape[-1] for level in levels] == [150, 75, 38, 19, 10]
    assert [encoder.grid(i) for i in range(5)] == [150, 75, 38, 19, 10]
    torch.testing.assert_close(levels[3], wanted[3], rtol=1e-4, atol=1e-5)
    assert encoder.input_size == 299
    with pytest.raises(ConfigError, match="upsample_to"):
        ImageEncoder(ImageEncoderConfig("test_resnet", upsample_to=0))


def vit(**changes):
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig("vit_tiny_patch16_224", **changes), 32).eval()


def test_class_token_and_cells_are_those_of_the_whole_model():
    encoder = vit(final_norm=True)
    reference = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    reference.load_state_dict({k.removeprefix("model."): v for k, v in encoder.model.state_dict().items()})
    with torch.no_grad():
        wanted = reference.forward_features(images())
        features = encoder.tokens(images())
    torch.testing.assert_close(features.class_token, wanted[:, 0])
    torch.testing.assert_close(features.pyramid[-1].flatten(2).mT, wanted[:, 1:])
    assert features.attention is None
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(images()), features.pyramid, strict=True))


def test_without_the_final_norm_levels_are_raw():
    encoder = vit()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(encoder(images()), encoder.tokens(images()).pyramid, strict=True))


def test_attention_is_that_of_the_last_block():
    encoder = vit(depth=2)
    block = encoder.model.model.blocks[-1].attn
    assert isinstance(block, Attention)
    assert block.fused_attn
    seen = []
    block.fused_attn = False  # timm then goes through a softmax and this dropout
    handle = block.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(images())
    handle.remove()
    block.fused_attn = True
    features = encoder.tokens(images(), attention=True)
    assert features.attention.shape == (2, 3, 5, 5)
    torch.testing.assert_close(features.attention, seen[0], rtol=1e-4, atol=1e-5)
    assert not features.attention.requires_grad
    assert features.class_token.requires_grad
    row = encoder.tokens(images(), attention=True, attention_rows=1).attention
    assert row.shape == (2, 3, 1, 5)
    torch.testing.assert_close(row, features.attention[:, :, :1])


def test_one_row_of_attention_does_not_cost_the_whole():
    """No tensor of a row per token is made beside the fused attention."""
    encoder = ImageEncoder(ImageEncoderConfig("vit_tiny_patch16_224", depth=2), 64)
    shapes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            shapes.extend(
                t.shape for t in (made if isinstance(made, tuple) else (made,)) if isinstance(t, torch.Tensor)
            )
            return made

    with Watch():
        encoder.tokens(images(size=64), attention=True, attention_rows=1)
    assert not [shape for shape in shapes if shape[-2:] == (17, 17)]
    with Watch():
        encoder.tokens(images(size=64), attention=True)
    assert [shape for shape in shapes if shape[-2:] == (17, 17)]


def test_attention_of_a_single_block():
    encoder = vit(depth=1)
    assert encoder.tokens(images()).class_token.shape == (2, 192)
    with pytest.raises(ConfigError, match="two blocks"):
        encoder.tokens(images(), attention=True)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_other_encoders_have_no_class_token(name):
    encoder = ImageEncoder(ImageEncoderConfig(name, depth=1), 64)
    with pytest.raises(ConfigError, match="vision transformer"):
        encoder.tokens(images(size=64))


def test_the_final_norm_needs_a_vision_transformer():
    with pytest.raises(ConfigError, match=r"final_norm.*test_resnet"):
        ImageEncoder(ImageEncoderConfig("test_resnet", final_norm=True), 32)


def test_a_table_of_another_size_is_interpolated_with_a_note(tmp_path):
    torch.manual_seed(1)
    weights = timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    encoder = vit(weights=path, final_norm=True)
    assert encoder.notes == ["image encoder: the position table of 4×4 cells is interpolated to 2×2"]
    wanted = resample_abs_pos_embed(weights["pos_embed"], new_size=[2, 2], old_size=[4, 4])
    torch.testing.assert_close(encoder.state_dict()["model.model.pos_embed"], wanted)
    same = ImageEncoder(ImageEncoderConfig("vit_tiny_patch16_224", weights=path), 64)
    assert same.notes == []
    with pytest.raises(CheckpointError, match="shape of"):
        ImageEncoder(ImageEncoderConfig("vit_small_patch16_224", weights=path, final_norm=True), 32)


def test_images_of_another_size_than_the_table():
    encoder = vit(depth=1)
    with torch.no_grad():
        assert encoder(images(size=48))[-1].shape == (2, 192, 3, 3)


def test_a_method_says_the_note(tmp_path, capsys, monkeypatch):
    from helpers import sizes
    from medvlp_baselines.template.module import TemplateMethod

    from medvlp.methods import base

    said = []
    monkeypatch.setattr(base, "rank_zero_info", said.append)
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=64).state_dict(), tmp_path / "w.safetensors")
    config = ImageEncoderConfig("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"), depth=1)
    TemplateMethod(**sizes(image=config))
    assert len(said) == 1
    assert "interpolated" in said[0]


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("no hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"image\.weights"):
        ImageEncoder(ImageEncoderConfig("resnet18", pretrained=True))
