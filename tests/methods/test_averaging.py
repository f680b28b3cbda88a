"""The moving average of the weights: what it is, where it is used, and what checkpoints hold of it."""

import lightning as L
import pytest
import torch
from helpers import datamodule, sizes, text_config, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from medvlp_baselines.template.module import TemplateMethod

import medvlp
from medvlp.errors import ConfigError
from medvlp.training.averaging import MovingAverage, _averaging
from medvlp.training.optim import OptimConfig

DECAY = 0.9


def build(**changes):
    torch.manual_seed(0)
    optim = OptimConfig(lr=1e-2, schedule="constant")
    return TemplateMethod(**sizes(**{"prompts": "phantom", "ema_decay": DECAY, "optim": optim, **changes}))


class Watch(L.Callback):
    """Weights after every step, and those in place when the validation embeds its prompts."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.steps.append({n: v.detach().clone() for n, v in pl_module.state_dict().items()})

    def on_fit_start(self, trainer, pl_module):
        embed = pl_module.embed_text

        def watched(texts, chunk=256):
            if not trainer.sanity_checking:
                self.validated.append({n: v.detach().clone() for n, v in pl_module.state_dict().items()})
            return embed(texts, chunk)

        pl_module.embed_text = watched


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ema")
    watch, model = Watch(), build()
    saving = ModelCheckpoint(dirpath=folder / "run", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    light = ModelCheckpoint(dirpath=folder / "light", save_weights_only=True, filename="light")
    fit = trainer(folder / "run", max_epochs=2, limit_train_batches=3, callbacks=[watch, saving, light])
    fit.fit(model, datamodule=datamodule(folder / "data"))
    fit.save_checkpoint(folder / "after.ckpt")
    return folder, model, watch


def averages(steps):
    """The average after each step."""
    made = [steps[0]]
    for step in steps[1:]:
        made.append({n: torch.lerp(made[-1][n], v, 1 - DECAY) if v.is_floating_point() else v for n, v in step.items()})
    return made


def test_the_average_is_validated_and_left_in_the_model(run):
    _, model, watch = run
    wanted = averages(watch.steps)
    assert len(watch.steps) == 6
    last = watch.validated[-1]
    torch.testing.assert_close(last, wanted[-1])
    torch.testing.assert_close(watch.validated[0], wanted[2])
    torch.testing.assert_close(dict(model.state_dict()), wanted[-1])
    assert any(not torch.equal(last[n], v) for n, v in watch.steps[-1].items())


def test_training_goes_on_with_its_own_weights(run, tmp_path):
    """As if there were no average: validation in between changes nothing."""
    _, _, watch = run
    other = Watch()
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=3, callbacks=[other], enable_checkpointing=False)
    fit.fit(build(ema_decay=None), datamodule=datamodule(tmp_path / "data"))
    for first, second in zip(watch.steps, other.steps, strict=True):
        assert all(torch.equal(first[n], v) for n, v in second.items())


def test_whole_numbers_are_copied():
    """In floating point 0.9·7 + 0.1·7 is less than 7, and position ids would go down by one."""
    update = _averaging(DECAY)
    ids = torch.arange(600)
    averaged = ids.clone()
    for _ in range(5):
        update([averaged], [ids], 1)
    assert torch.equal(averaged, ids)


def test_checkpoints_hold_both(run):
    folder, _, watch = run
    wanted = averages(watch.steps)
    for step in (1, 4):
        path = folder / "run" / f"step={step}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        torch.testing.assert_close(dict(checkpoint["state_dict"]), wanted[step - 1])
        assert all(torch.equal(v, watch.steps[step - 1][n]) for n, v in checkpoint["current_model_state"].items())
        torch.testing.assert_close(dict(medvlp.load(path).state_dict()), wanted[step - 1])
        trained = medvlp.load(path, averaged=False)
        assert all(torch.equal(v, watch.steps[step - 1][n]) for n, v in trained.state_dict().items())


def test_a_checkpoint_after_the_run_holds_both(run):
    folder, _, watch = run
    checkpoint = torch.load(folder / "after.ckpt", weights_only=True)
    torch.testing.assert_close(dict(checkpoint["state_dict"]), averages(watch.steps)[-1])
    assert all(torch.equal(v, watch.steps[-1][n]) for n, v in checkpoint["current_model_state"].items())


def test_a_checkpoint_of_weights_alone_holds_the_average(run):
    folder, _, watch = run
    loaded = medvlp.load(folder / "light" / "light.ckpt")
    torch.testing.assert_close(dict(loaded.state_dict()), averages(watch.steps)[-1])


def test_a_resumed_run_ends_where_the_whole_one_ends(run, tmp_path):
    folder, model, watch = run
    other, again = Watch(), build()
    fit = trainer(tmp_path, max_epochs=2, limit_train_batches=3, callbacks=[other], enable_checkpointing=False)
    fit.fit(again, datamodule=datamodule(tmp_path / "data"), ckpt_path=str(folder / "run" / "step=4.ckpt"))
    assert len(other.steps) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for name, value in watch.steps[-1].items():
        assert torch.equal(other.steps[-1][name], value), name


def test_checkpoints_with_and_without_an_average_resume_each_other(run, tmp_path):
    without = tmp_path / "without.ckpt"
    fit = trainer(tmp_path / "w", max_epochs=1, limit_train_batches=2, enable_checkpointing=False)
    fit.fit(build(ema_decay=None), datamodule=datamodule(tmp_path / "data"))
    fit.save_checkpoint(without)
    for start, decay in ((run[0] / "run" / "step=4.ckpt", None), (without, DECAY)):
        model = build(ema_decay=decay)
        fit = trainer(tmp_path / "r", max_epochs=2, limit_train_batches=3, enable_checkpointing=False)
        fit.fit(model, datamodule=datamodule(tmp_path / "data"), ckpt_path=str(start))
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decays(decay):
    with pytest.raises(ConfigError, match="ema_decay"):
        build(ema_decay=decay)
    with pytest.raises(ConfigError, match="ema_decay"):
        MovingAverage(decay)


def test_evaluation_needs_no_average(run, tmp_path):
    folder, model, _ = run
    fresh = build(text=text_config())
    result = trainer(tmp_path).validate(
        fresh, datamodule=datamodule(tmp_path / "data"), ckpt_path=str(folder / "run" / "step=6.ckpt"), verbose=False
    )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value)
    assert "val/loss" in result[0]
