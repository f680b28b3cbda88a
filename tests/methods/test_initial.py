"""The methods ``random`` and ``imagenet``, which are not trained."""

import importlib.metadata

import pytest
import timm
import torch
from helpers import batch, datamodule, image_config, trainer
from medvlp_baselines.initial.module import ImageNetInit, RandomInit
from safetensors.torch import save_file

import medvlp
from medvlp import registry
from medvlp.errors import ConfigError, NotSupportedError


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    made = [
        importlib.metadata.EntryPoint(kind.name, f"medvlp_baselines.initial.module:{kind.__name__}", registry.GROUP)
        for kind in (RandomInit, ImageNetInit)
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: made)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


def test_fit_writes_a_checkpoint_and_takes_no_step(tmp_path):
    torch.manual_seed(0)
    model = RandomInit(image=image_config(), image_size=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(tmp_path / "run", num_sanity_val_steps=2)
    run.fit(model, datamodule=datamodule(tmp_path / "data"))
    assert run.global_step == 0
    loaded = medvlp.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert type(loaded) is RandomInit
    assert loaded.preprocess == {"transform": "g2d_paper", "size": 32, "intensity": "standard"}
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert loaded.embed_image(batch()["image"]).shape == (4, loaded.image_encoder.out_channels)
    assert run.validate(loaded, datamodule=datamodule(tmp_path / "data"), verbose=False) == [{}]


def test_another_seed_is_another_encoder():
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(RandomInit(image=image_config()).state_dict()["image_encoder.model.conv1.0.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_imagenet_from_a_file_without_data(tmp_path, weights):
    model = ImageNetInit(image={"name": "test_resnet", "weights": weights})
    model.preprocess = {"transform": "mgca", "size": 32, "intensity": "standard"}
    model.save(tmp_path / "deep" / "imagenet.ckpt")
    loaded = medvlp.load(tmp_path / "deep" / "imagenet.ckpt")
    assert loaded.preprocess == model.preprocess
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    loaded.save(tmp_path / "again.ckpt")  # what was loaded has its weights from the checkpoint
    assert weights.encode() not in (tmp_path / "again.ckpt").read_bytes()


def test_imagenet_without_weights_is_refused(tmp_path):
    model = ImageNetInit(image={"name": "test_resnet"})
    with pytest.raises(ConfigError, match=r"image\.weights"):
        model.save(tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"image\.weights"):
        trainer(tmp_path).fit(model, datamodule=datamodule(tmp_path / "data"))


def test_imagenet_is_timms_unless_told_otherwise(monkeypatch):
    asked = {}
    original = timm.create_model

    def create(name, pretrained=False, **options):
        asked.update(name=name, pretrained=pretrained)
        return original("test_resnet", **options)

    monkeypatch.setattr(timm, "create_model", create)
    ImageNetInit()
    assert asked == {"name": "resnet50", "pretrained": True}


@pytest.mark.parametrize("kind", [RandomInit, ImageNetInit])
def test_what_they_cannot_do(kind):
    model = kind(image=image_config())
    with pytest.raises(NotSupportedError, match=r"no text (side|encoder)"):
        model.embed_text(["edema"])
    with pytest.raises(NotSupportedError, match=r"no text (side|encoder)"):
        model.encode_tokens(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(NotSupportedError, match="nothing to train"):
        model.losses(batch())
    with pytest.raises(NotSupportedError, match="patch"):
        model.embed_patches(batch()["image"])
    assert model.explain(batch()) == {}
    assert model.zero_shot_auroc(torch.rand(4, 2), torch.rand(4, 1)) == {}
    assert not hasattr(model, "text_encoder")
