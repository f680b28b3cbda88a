import json
import pathlib
import zipfile

import helpers
import numpy as np
import pytest
import torch
from helpers import MARKER, SIZE, batch, datamodule, image_config, sizes, text_config, trainer
from medvlp_baselines.template.module import TemplateMethod

import medvlp
from medvlp import distributed
from medvlp.callbacks import StudyFigures, ZeroShotReport
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.errors import CheckpointError, ConfigError, NonFiniteLossError
from medvlp.methods.g2d.module import G2D
from medvlp.training.optim import OptimConfig
from medvlp.training.settings import plain


def g2d(**changes):
    torch.manual_seed(0)
    return G2D(**sizes(**{"prompts": "phantom", **changes}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """G2D after one epoch of a few steps on CPU: (folder, model, checkpoint path, reports' folder)."""
    folder = tmp_path_factory.mktemp("fit")
    model = g2d(optim=OptimConfig(lr=1e-3), heads=2, threshold="median")
    fit = trainer(folder / "run", num_sanity_val_steps=-1, callbacks=[ZeroShotReport(), StudyFigures(2)], max_epochs=1)
    fit.fit(model, datamodule=datamodule(folder / "data"))
    (path,) = (folder / "run").rglob("epoch*.ckpt")
    return folder, model, path


# ---------------------------------------------------------------- training


def test_training_step_sums_the_terms():
    model, data = g2d().train(), batch()
    logged = {}
    model.log = lambda name, value, **_: logged.update({name: float(value)})
    model.log_dict = lambda values, **_: logged.update({k: float(v) for k, v in values.items()})
    torch.manual_seed(0)
    loss = model.training_step(data, 0)
    terms = {k: float(v.detach()) for k, v in model.losses(data).items()}
    assert set(logged) == {"train/loss", "train/contrast", "train/pixel"}
    assert float(loss.detach()) == pytest.approx(sum(terms.values()), rel=1e-5)
    assert logged["train/loss"] == pytest.approx(logged["train/contrast"] + logged["train/pixel"])
    assert loss.requires_grad


def test_a_batch_of_one_has_no_contrast():
    for model in (g2d(), TemplateMethod(**sizes())):
        with pytest.raises(ConfigError, match=r"data\.batch_size"):
            model.train().training_step(batch(1), 0)
    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        model.losses(batch(1))


def test_a_single_process_gathers_nothing():
    x = torch.rand(3, 2)
    assert distributed.all_gather(x) is x
    assert (distributed.world_size(), distributed.rank()) == (1, 0)


def test_each_step_has_its_own_seed(monkeypatch):
    model = TemplateMethod(**sizes())

    def draw(batch_idx):
        torch.rand(3)  # whatever was drawn before does not matter
        model.on_train_batch_start({}, batch_idx)
        return float(torch.rand(1))

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    first, second = draw(0), draw(1)
    assert draw(0) == first != second
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert draw(0) != first


# ---------------------------------------------------------------- text


def test_embed_text():
    model = g2d().eval()
    with pytest.raises(ConfigError, match="tokenizer"):
        model.embed_text(["clear lungs"])
    model.attach_tokenizer(helpers.tokenizer())
    texts = ["clear lungs", "small left effusion no pneumothorax", "edema is seen"]
    with torch.no_grad():
        together = model.embed_text(texts)
        torch.testing.assert_close(model.embed_text(texts, chunk=1), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


def test_a_tokenizer_larger_than_the_embeddings_is_refused():
    tokenizer = helpers.tokenizer()
    model = TemplateMethod(**sizes(text=text_config(vocab_size=len(tokenizer) - 1)))
    with pytest.raises(ConfigError, match=f"at least {len(tokenizer)}"):
        model.attach_tokenizer(tokenizer)
    TemplateMethod(**sizes(text=text_config(vocab_size=len(tokenizer)))).attach_tokenizer(tokenizer)


# ---------------------------------------------------------------- hyper-parameters


def is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def test_hyperparameters_are_plain_and_rebuild_the_method():
    model = g2d(variant="official", heads=2, optim=OptimConfig(betas=(0.8, 0.9)))
    values = model.hyperparameters()
    assert is_plain(values)
    assert json.loads(json.dumps(values)) == values
    assert (values["heads"], values["variant"], values["optim"]["betas"]) == (2, "official", [0.8, 0.9])
    again = G2D(**values)
    assert again.hyperparameters() == values
    assert again.optim_config == OptimConfig(betas=[0.8, 0.9])
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, again)]
    assert shapes[0] == shapes[1]


def test_hyperparameters_name_no_source_of_weights(tmp_path):
    import timm

    path = tmp_path / "w.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    model = g2d(image=ImageEncoderConfig("test_resnet", depth=2, weights=str(path)))
    assert str(tmp_path) not in json.dumps(model.hyperparameters())


def test_values_that_are_not_plain_are_refused():
    assert plain({1: (pathlib.PurePosixPath, 2)[1:], "a": pathlib.Path("x")}) == {"1": [2], "a": "x"}
    with pytest.raises(CheckpointError, match="ndarray"):
        plain({"a": np.zeros(2)})


# ---------------------------------------------------------------- a run and its checkpoint


def test_run_leaves_its_files(run):
    folder, model, _ = run
    content = json.loads((folder / "run" / "zero_shot.json").read_text())
    assert content["studies"] == 6
    assert set(content["before"]) == set(content["after"]) == {"Edema", "Fracture", "mean"}
    assert content["prompts"] == "phantom"
    (figure,) = (folder / "run" / "figures").iterdir()
    assert figure.stat().st_size > 5000
    assert model.label_names == ["Edema", "Fracture"]
    assert model.preprocess == {"transform": "g2d_paper", "size": SIZE, "intensity": "standard"}
    assert {"recall@1/i2t", "recall@10/t2i", "auroc/mean"} <= set(model.evaluation)


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def test_checkpoint_is_plain_and_holds_nothing_of_the_machine_or_the_reports(run):
    folder, _, path = run
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint["medvlp"]) == {
        *("method", "version", "hyperparameters", "tokenizer", "preprocess", "label_names", "prompts")
    }
    assert checkpoint["medvlp"]["method"] == "g2d"
    with zipfile.ZipFile(path) as archive:  # stored without compression, but let that be no condition
        content = b"".join(archive.read(name) for name in archive.namelist())
    for forbidden in (MARKER, str(folder), str(pathlib.Path.home()) + "/", "site-packages", "_instantiator"):
        assert forbidden.encode() not in content, forbidden
    paths = [s for s in strings(checkpoint) if len(s) < 1000 and s.startswith("/") and len(s) > 1]
    assert not paths


def test_load_gives_the_same_embeddings(run):
    _, model, path = run
    loaded = medvlp.load(path)
    assert type(loaded) is G2D
    assert not loaded.training
    assert loaded.preprocess == model.preprocess
    assert loaded.label_names == model.label_names
    assert loaded.prompts == model.prompts
    assert loaded.mask_settings == model.mask_settings
    images, texts = batch()["image"], ["edema is seen.", "normal heart size"]
    model.eval()
    with torch.no_grad():
        assert torch.equal(loaded.embed_image(images), model.embed_image(images))
        assert torch.equal(loaded.embed_text(texts), model.embed_text(texts))
        assert torch.equal(loaded.embed_patches(images), model.embed_patches(images))
    assert set(loaded.hyperparameters()) == set(model.hyperparameters())


def test_loading_needs_no_hub_and_no_corpus(run, tmp_path, monkeypatch):
    _, _, path = run
    copy = tmp_path / "elsewhere.ckpt"
    copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    medvlp.load("elsewhere.ckpt")


def test_a_moved_run_resumes_with_its_best_checkpoint_here(run, tmp_path):
    folder, _, path = run
    moved = tmp_path / "moved"
    target = moved / path.relative_to(folder / "run")
    target.parent.mkdir(parents=True)
    target.write_bytes(path.read_bytes())
    fit = trainer(moved, max_epochs=2, limit_val_batches=0, callbacks=[ZeroShotReport()])
    fit.fit(g2d(optim=OptimConfig(lr=1e-3), heads=2), datamodule=datamodule(tmp_path / "d"), ckpt_path=str(target))
    assert fit.current_epoch == 2
    assert pathlib.Path(fit.checkpoint_callback.best_model_path).is_file()
    assert str(moved) in fit.checkpoint_callback.best_model_path


def test_a_users_prompts_travel_with_the_checkpoint(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "prompts": {"Edema": {"positive": ["wet"], "negative": ["dry"]}}}))
    model = g2d(prompts=str(path), decoder_loss="none")
    model.attach_tokenizer(helpers.tokenizer())
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "m.ckpt")
    path.unlink()
    loaded = medvlp.load(tmp_path / "m.ckpt")
    assert loaded.prompts == model.prompts
    assert str(tmp_path).encode() not in (tmp_path / "m.ckpt").read_bytes()


def test_a_compiled_methods_names_are_cleaned(tmp_path):
    model = g2d(decoder_loss="none")
    model.attach_tokenizer(helpers.tokenizer())
    state = {f"_orig_mod.{k}" if i % 2 else k: v for i, (k, v) in enumerate(model.state_dict().items())}
    checkpoint = {"state_dict": state}
    model.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == set(model.state_dict())


def test_saving_without_a_tokenizer_is_refused():
    with pytest.raises(CheckpointError, match="tokenizer"):
        g2d().on_save_checkpoint({"state_dict": {}})


# ---------------------------------------------------------------- files that do not load


def saved(run, tmp_path, change):
    checkpoint = torch.load(run[2], weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "garbage.ckpt").write_bytes(b"garbage")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2"}, tmp_path / "foreign.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"medvlp": 3}, tmp_path / "number.ckpt")
    torch.save({"medvlp": {"method": "g2d"}}, tmp_path / "short.ckpt")
    for name in ("garbage", "foreign", "list", "number", "short", "absent"):
        with pytest.raises(CheckpointError, match=name):
            medvlp.load(tmp_path / f"{name}.ckpt")


def test_a_truncated_checkpoint(run, tmp_path):
    content = run[2].read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="torn"):
        medvlp.load(tmp_path / "torn.ckpt")


def test_checkpoints_that_do_not_fit(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"projector\.0\.weight"):
        medvlp.load(saved(run, tmp_path, lambda c: c["state_dict"].pop("projector.0.weight")))
    with pytest.raises(CheckpointError, match="no_such"):
        medvlp.load(saved(run, tmp_path, lambda c: c["medvlp"]["hyperparameters"].update(no_such=1)))
    with pytest.raises(CheckpointError, match="tokenizer"):
        medvlp.load(saved(run, tmp_path, lambda c: c["medvlp"].pop("tokenizer")))
    with pytest.raises(ConfigError, match="nobody"):
        medvlp.load(saved(run, tmp_path, lambda c: c["medvlp"].update(method="nobody")))


def test_a_method_does_not_take_another_methods_checkpoint(run):
    with pytest.raises(CheckpointError, match="'g2d', not 'template'"):
        TemplateMethod(**sizes()).on_load_checkpoint(torch.load(run[2], weights_only=True))


# ---------------------------------------------------------------- losses that are not finite


class Exploding(TemplateMethod):
    """Its loss becomes ``value`` at optimiser step 3."""

    name = "exploding"
    value = float("nan")

    def losses(self, batch, outputs=None):
        terms = super().losses(batch, outputs)
        return {k: v * self.value if self.training and self.global_step == 3 else v for k, v in terms.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value):
    torch.manual_seed(0)
    model = Exploding(**sizes())
    model.value = value
    data = datamodule(tmp_path / "data")
    seen = []
    model.on_train_batch_start = lambda batch, batch_idx: seen.append(list(batch["id"]))
    fit = trainer(tmp_path / "run", limit_val_batches=0, max_epochs=3, accumulate_grad_batches=1)
    with pytest.raises(NonFiniteLossError, match=r"step 3 \(epoch 0, batch 3\)"):
        fit.fit(model, datamodule=data)
    content = json.loads((tmp_path / "run" / "nonfinite_batch_rank0.json").read_text())
    assert content == {"step": 3, "epoch": 0, "batch_idx": 3, "ids": seen[3]}
    assert len(content["ids"]) == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert MARKER not in (tmp_path / "run" / "nonfinite_batch_rank0.json").read_text()


def test_images_of_another_size_than_the_models_are_said(tmp_path):
    model = TemplateMethod(**sizes(image=image_config(name="test_vit", depth=None)))
    with pytest.warns(UserWarning, match="48 px, model.image_size is 32: position tables are interpolated"):
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(
            model, datamodule=datamodule(tmp_path, batch_size=2, image_size=48)
        )
