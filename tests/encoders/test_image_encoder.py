import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from medvlp.encoders.decoder import UNetDecoder
from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.encoders.loading import read_weights
from medvlp.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("name", "channels", "reductions"),
    [
        ("resnet18", [64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
        ("test_convnext", [24, 32, 48, 64], [4, 8, 16, 32]),
        ("test_efficientnet", [16, 24, 32, 48, 64], [2, 4, 8, 16, 32]),
        ("test_vit", [64, 64, 64], [16, 16, 16]),
    ],
)
def test_pyramid(name, channels, reductions):
    encoder = ImageEncoder(ImageEncoderConfig(name), image_size=64)
    assert encoder.channels == channels
    assert encoder.reductions == reductions
    assert encoder.out_channels == channels[-1]
    levels = encoder(torch.rand(2, 3, 64, 64))
    assert [tuple(level.shape) for level in levels] == [
        (2, c, 64 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)
    ]


def test_channels_come_second_for_transformers_that_put_them_last():
    encoder = ImageEncoder(ImageEncoderConfig("swin_tiny_patch4_window7_224", depth=2), image_size=64)
    levels = encoder(torch.rand(2, 3, 64, 64))
    assert [tuple(level.shape) for level in levels] == [(2, 96, 16, 16), (2, 192, 8, 8)]
    assert UNetDecoder(encoder.channels, encoder.reductions)(levels).shape == (2, 1, 64, 64)


def test_vit_of_another_image_size():
    encoder = ImageEncoder(ImageEncoderConfig("vit_tiny_patch16_224", depth=1), image_size=48)
    assert encoder(torch.rand(1, 3, 48, 48))[-1].shape == (1, 192, 3, 3)


def test_depth_keeps_levels_and_drops_what_is_deeper():
    whole = ImageEncoder(ImageEncoderConfig("resnet18"), 64)
    for depth in (1, 2, 3):
        part = ImageEncoder(ImageEncoderConfig("resnet18", depth=depth), 64)
        assert part.channels == whole.channels[:depth]
        assert part.reductions == whole.reductions[:depth]
        assert len(part(torch.rand(1, 3, 64, 64))) == depth
    names = ImageEncoder(ImageEncoderConfig("resnet18", depth=2), 64).state_dict()
    assert not [name for name in names if "layer2" in name]


def test_memory_format_does_not_change_the_values():
    torch.manual_seed(0)
    last = ImageEncoder(ImageEncoderConfig("test_resnet", depth=2), 32).eval()
    first = ImageEncoder(ImageEncoderConfig("test_resnet", depth=2, channels_last=False), 32).eval()
    first.load_state_dict(last.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(first(x)[-1], last(x)[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet_nonsense", {}, "image"),
        ("resnet18", {"depth": 9}, "image"),
        ("resnet18", {"depth": 0}, "depth must lie in"),
        ("resnet18", {"options": {"no_such_option": 1}}, "image"),
    ],
)
def test_impossible_encoders_are_config_errors(name, options, said):
    with pytest.raises(ConfigError, match=said):
        ImageEncoder(ImageEncoderConfig(name, **options), 64)


# ---------------------------------------------------------------- weights from a file


def file_of(name, path, prefix="", nested=None, **extra):
    torch.manual_seed(3)
    weights = timm.create_model(name).state_dict()
    content = {prefix + key: value.clone() for key, value in weights.items()} | extra
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save({nested: content, "epoch": 3} if nested else content, path)
    return weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "encoder.", "backbone."])
def test_weights_of_a_resnet_load_exactly(tmp_path, suffix, prefix):
    path = tmp_path / f"weights{suffix}"
    weights = file_of("test_resnet", path, prefix)
    assert any(key.startswith("fc.") for key in weights)
    encoder = ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(path)), 32)
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("nested", ["state_dict", "model"])
def test_weights_below_a_key_of_a_training_checkpoint(tmp_path, nested):
    weights = file_of("test_resnet", tmp_path / "w.pth", nested=nested)
    encoder = ImageEncoder(ImageEncoderConfig("test_resnet", depth=2, weights=str(tmp_path / "w.pth")), 32)
    assert torch.equal(encoder.state_dict()["model.conv1.0.weight"], weights["conv1.0.weight"])


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet", "densenet121"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_every_family_load_under_the_names_of_the_whole_model(tmp_path, name, prefix):
    path = tmp_path / "w.safetensors"
    weights = file_of(name, path, prefix)
    encoder = ImageEncoder(ImageEncoderConfig(name, weights=str(path)), 160)
    torch.manual_seed(3)
    # The same seed draws the same weights, so timm's own wrapper tells what should be where. (EfficientNets have a
    # class of their own for features, which draws in another order but keeps the names.)
    wrapper = timm.create_model(name, features_only=True)
    loaded = encoder.model.state_dict()
    expected = weights if name == "test_efficientnet" else wrapper.state_dict()
    torch.testing.assert_close(loaded, {key: expected[key] for key in loaded}, rtol=0, atol=0)


def test_the_released_g2d_encoder_names_load(tmp_path):
    """Encoders saved by G2D's trainer have torchvision names without a classifier."""
    weights = {k: v for k, v in timm.create_model("resnet18").state_dict().items() if not k.startswith("fc.")}
    torch.save(weights, tmp_path / "g2d_encoder.pth")
    encoder = ImageEncoder(ImageEncoderConfig("resnet18", weights=str(tmp_path / "g2d_encoder.pth")), 32)
    torch.testing.assert_close(encoder.model.state_dict(), weights)


def test_counters_may_be_missing(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    torch.save({k: v for k, v in weights.items() if "num_batches" not in k}, tmp_path / "w.pth")
    ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / "w.pth")), 32)


def test_files_that_do_not_fit_name_a_weight(tmp_path):
    weights = file_of("test_resnet", tmp_path / "w.pth")
    del weights["layer1.0.conv1.weight"]
    torch.save(weights, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight"):
        ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / "short.pth")), 32)
    weights = file_of("test_resnet", tmp_path / "w.pth")
    weights["conv1.0.weight"] = torch.zeros(1, 2, 3)
    torch.save(weights, tmp_path / "shape.pth")
    with pytest.raises(CheckpointError, match=r"conv1\.0\.weight"):
        ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / "shape.pth")), 32)
    with pytest.raises(CheckpointError, match="missing"):
        ImageEncoder(ImageEncoderConfig("resnet18", weights=str(tmp_path / "w.pth")), 32)


def named(prefix, weights, factor=1.0):
    return {
        prefix + key: value * factor if value.is_floating_point() else value.clone() for key, value in weights.items()
    }


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(
    ("outer", "prefix", "shown"),
    [
        ((), "module.model.", "module.model."),
        ((), "_orig_mod.", ""),
        ((), "module._orig_mod.backbone._orig_mod.", "module.backbone."),
        (("state_dict",), "module.encoder_q.", "state_dict.module.encoder_q."),
        (("model_state", "net"), "encoder.trunk.", "model_state.net.encoder.trunk."),
        (("teacher",), "backbone.", "teacher.backbone."),
    ],
)
def test_prefixes_of_any_depth_are_found_and_shown(tmp_path, name, outer, prefix, shown):
    weights = timm.create_model(name).state_dict()
    content = {**named(prefix, weights), "head.0.weight": torch.zeros(3), "queue_ptr": torch.zeros(1)}
    for key in reversed(outer):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    torch.save(content, tmp_path / "w.pth")
    encoder = ImageEncoder(ImageEncoderConfig(name, weights=str(tmp_path / "w.pth")), 160)
    own = {key.removeprefix("model."): value for key, value in encoder.model.state_dict().items()}
    for key, value in own.items():
        assert torch.equal(value, weights[key]), key
    assert [note for note in encoder.notes if "below" in note] == (
        [f"image encoder: weights below {shown!r} of {tmp_path / 'w.pth'}"] if shown else []
    )


def test_wrappers_in_the_middle_of_names_are_passed_over(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    wrapped = {key.replace("layer1.", "layer1._checkpoint_wrapped_module._orig_mod."): v for key, v in weights.items()}
    torch.save(wrapped, tmp_path / "w.pth")
    encoder = ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / "w.pth")), 32)
    assert torch.equal(encoder.model.state_dict()["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("student.backbone.", "teacher.backbone."),
        ("", "ema."),
        ("frontal.", "lateral."),
        ("state_dict.", "state_dict_ema."),
    ],
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_several_networks_that_fit_must_be_chosen_from(tmp_path, first, second, kind):
    weights = timm.create_model("test_resnet").state_dict()
    path = tmp_path / f"w.{kind}"
    (torch.save if kind == "pth" else save_file)({**named(first, weights), **named(second, weights, 2.0)}, path)
    with pytest.raises(CheckpointError, match="several networks") as caught:
        ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(path)), 32)
    assert str(caught.value).endswith(f"image.weights_prefix to one of: {min(first, second)!r}, {max(first, second)!r}")
    for prefix, factor in ((first, 1.0), (second, 2.0)):
        encoder = ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(path), weights_prefix=prefix), 32)
        assert torch.equal(encoder.model.state_dict()["conv1.0.weight"], weights["conv1.0.weight"] * factor)
    with pytest.raises(CheckpointError, match="weights_prefix 'no'"):
        ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(path), weights_prefix="no"), 32)


def test_equal_copies_and_smaller_networks_are_no_choice(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    part = {key: value for key, value in named("teacher.", weights, 2.0).items() if "layer4" not in key}
    torch.save({**named("a.", weights), **named("b.", weights), **part}, tmp_path / "w.pth")
    encoder = ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / "w.pth")), 32)
    assert torch.equal(encoder.model.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])


def test_one_weight_under_two_names_is_refused(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    torch.save({**weights, "_orig_mod.conv1.0.weight": weights["conv1.0.weight"] + 1}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"two weights for 'conv1\.0\.weight'"):
        ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / "w.pth")), 32)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value * float("nan"),
        lambda value: value.clone().index_fill_(0, torch.tensor(0), float("inf")),
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.int8),
        lambda value: value.to("meta"),
        lambda value: value.to_sparse(),
    ],
)
def test_weights_that_are_no_numbers_name_file_and_weight(tmp_path, kind, spoil):
    weights = timm.create_model("test_resnet").state_dict()
    weights["conv1.0.weight"] = spoil(weights["conv1.0.weight"])
    path = tmp_path / f"w.{kind}"
    try:
        (torch.save if kind == "pth" else save_file)(weights, path)
    except (ValueError, RuntimeError, KeyError, NotImplementedError):
        pytest.skip("safetensors holds no such tensors")
    with pytest.raises(CheckpointError, match=r"w\..*conv1\.0\.weight"):
        ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(path)), 32)


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:a/b", "local-dir:/tmp", "resnet18/x", "no_such"]
)
def test_names_beyond_timms_own_models_are_refused(name):
    with pytest.raises(ConfigError, match=r"image\.name"):
        ImageEncoder(ImageEncoderConfig(name), 32)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_weights_file_does_not_run(tmp_path):
    target = tmp_path / "ran"
    torch.save({"conv1.weight": Payload(str(target))}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload(str(target))))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(CheckpointError, match="safetensors"):
            ImageEncoder(ImageEncoderConfig("test_resnet", weights=str(tmp_path / name)), 32)
    assert not target.exists()


def test_other_unusable_files(tmp_path):
    (tmp_path / "garbage.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "garbage.safetensors").write_bytes(b"not a checkpoint")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    for name in ("garbage.pth", "garbage.safetensors", "list.pth", "tensor.pth", "absent.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)


# ---------------------------------------------------------------- decoder


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("depth", [None, 2, 3])
@pytest.mark.parametrize("out_channels", [1, 3])
def test_decoder_gives_the_image_size(name, depth, out_channels):
    encoder = ImageEncoder(ImageEncoderConfig(name, depth=depth), 64)
    decoder = UNetDecoder(encoder.channels, encoder.reductions, out_channels)
    out = decoder(encoder(torch.rand(2, 3, 64, 64)))
    assert out.shape == (2, out_channels, 64, 64)
    out.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_decoder_of_resnet18_is_the_librarys():
    """The same weights give what segmentation-models-pytorch's own U-Net gives."""
    import segmentation_models_pytorch as smp

    reference = smp.Unet("resnet18", encoder_weights=None).eval()
    decoder = UNetDecoder([64, 64, 128, 256, 512], [2, 4, 8, 16, 32]).eval()
    decoder.decoder.load_state_dict(reference.decoder.state_dict())
    decoder.head.load_state_dict(reference.segmentation_head.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(decoder(reference.encoder(x)[1:]), reference(x))


def test_decoder_widths():
    decoder = UNetDecoder([8, 12], [2, 4], widths=[7, 5])
    assert decoder([torch.rand(1, 8, 16, 16), torch.rand(1, 12, 8, 8)]).shape == (1, 1, 32, 32)
    assert decoder.head[0].in_channels == 5


@pytest.mark.parametrize("reductions", [[16, 16, 16], [8, 16], [2, 8], [1, 2]])
def test_pyramids_that_do_not_double_are_refused(reductions):
    with pytest.raises(ConfigError, match="strides"):
        UNetDecoder([8] * len(reductions), reductions)
