"""What every registered method does, plug-ins included: a new one is tested the moment it registers."""

import math

import pytest
import torch
import yaml
from ddp_workers import CASES, CHUNKED
from helpers import batch, build, datamodule, image_config, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import medvlp
from medvlp import registry
from medvlp.errors import ConfigError, NotSupportedError

NAMES = [entry.name for entry in registry.methods()]
TRAINED = [name for name in NAMES if name not in ("random", "imagenet")]


@pytest.fixture(scope="module", params=TRAINED)
def fitted(request, tmp_path_factory):
    """A method after two steps, its data module, its checkpoint and the trainer's folder."""
    folder = tmp_path_factory.mktemp(request.param)
    data, model = datamodule(folder, batch_size=4), build(request.param)
    run = trainer(folder, max_steps=2)
    run.fit(model, datamodule=data)
    run.save_checkpoint(folder / "two.ckpt")
    return request.param, model, data, folder


def test_two_steps_and_a_loadable_checkpoint(fitted):
    name, model, _, folder = fitted
    assert model.trainer.global_step == 2
    assert math.isfinite(float(model.trainer.callback_metrics["train/loss"]))
    loaded = medvlp.load(folder / "two.ckpt")
    assert loaded.name == name
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_it_embeds_and_classifies_without_training(fitted):
    name, _, data, folder = fitted
    model = medvlp.load(folder / "two.ckpt").eval()
    images = next(iter(data.val_dataloader()))["image"]
    with torch.no_grad():
        image, text = model.embed_image(images), model.embed_text(["small left effusion", "no pneumothorax", ""])
        assert image.shape[1] == text.shape[1]
        for embedded in (image, text):
            torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(embedded)))
        if type(model).embed_patches is medvlp.PretrainModule.embed_patches:
            with pytest.raises(NotSupportedError, match=name):
                model.embed_patches(images)
        else:
            patches = model.embed_patches(images)
            assert patches.shape[:2] == image.shape
            torch.testing.assert_close(patches.norm(dim=1), torch.ones_like(patches[:, 0]))
    report = trainer(folder).validate(model, datamodule=data, verbose=False)[0]
    assert 0 <= report["val/recall@1/i2t"] <= 1
    assert math.isfinite(report["val/loss"])


@pytest.mark.parametrize("name", TRAINED)
def test_it_goes_on_where_it_stopped(name, tmp_path):
    """From a checkpoint in mid-epoch on, the rest of a run is what it would have been, bit for bit."""
    outcomes = []
    for folder, checkpoint in (("whole", None), ("resumed", tmp_path / "whole" / "step=2.ckpt")):
        model, keep = build(name), ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=2, save_top_k=-1)
        run = trainer(tmp_path / folder, max_steps=4, max_epochs=-1, callbacks=[keep])
        run.fit(model, datamodule=datamodule(tmp_path / "data", batch_size=3), ckpt_path=checkpoint)
        assert run.global_step == 4
        outcomes.append(model.state_dict())
    for key, value in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", TRAINED)
def test_lower_precision_and_compiled_encoders(name, tmp_path):
    model = build(name, compile="eager")
    run = trainer(tmp_path, max_steps=1, precision="bf16-mixed")
    run.fit(model, datamodule=datamodule(tmp_path, batch_size=4))
    assert math.isfinite(float(run.callback_metrics["train/loss"]))
    run.save_checkpoint(tmp_path / "one.ckpt")
    assert not any("_orig_mod" in key for key in torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"])
    medvlp.load(tmp_path / "one.ckpt")


@pytest.mark.parametrize("name", TRAINED)
def test_one_pair_has_nothing_to_be_contrasted_with(name):
    model = build(name).train()
    with pytest.raises(ConfigError, match="two pairs"):
        model.training_step(batch(1), 0)


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_finite_and_differentiable(name):
    model = build(name).train()
    terms = model.losses(batch(6))
    total = torch.stack(list(terms.values())).sum()
    assert terms
    assert torch.isfinite(total)
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", TRAINED)
def test_processes_and_chunks_are_compared_with_one_large_batch(name):
    """``ddp/test_gloo.py`` runs these cases; a method that is in neither table is not tested there."""
    assert name in {method for method, _ in CASES.values()}
    assert name in {method for method, _ in CHUNKED.values()}


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_knows_it(command, name):
    kind = registry.get_method(name).__name__
    settings = yaml.safe_load(command("fit", "--print_config", "--model", kind).ok().out)
    assert settings["model"]["class_path"].endswith("." + kind)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRAINED])
def test_initial_weights_are_a_checkpoint_without_training(name, tmp_path):
    model = build(name)
    if name == "imagenet":
        weights = tmp_path / "weights.pth"
        torch.save(model.image_encoder.model.state_dict(), weights)
        model = build(name, image=image_config(weights=str(weights)))
    run = trainer(tmp_path)
    run.fit(model, datamodule=datamodule(tmp_path))
    assert run.global_step == 0
    loaded = medvlp.load(tmp_path / "checkpoints" / "last.ckpt")
    assert loaded.embed_image(batch(2)["image"]).shape[0] == 2
    with pytest.raises(NotSupportedError, match=name):
        loaded.embed_text(["no pneumothorax"])
