"""A run that is resumed from any checkpoint sees exactly the samples that the uninterrupted run had left."""

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from PIL import Image

from medvlp.datamodules.base import RadiographDataModule
from medvlp.datamodules.sampler import ResumableSampler
from medvlp.datasets.base import RadiographDataset, make_table

PAIRS, BATCH, EPOCHS = 27, 4, 3
PER_EPOCH = PAIRS // BATCH  # 6, and three pairs are dropped


class _Data(RadiographDataModule):
    def __init__(self, image: str, **options):
        super().__init__(image_size=8, transform="phantom", seed=5, **options)
        self.image = image

    def read(self, split):
        n = PAIRS if split == "train" else 5
        ids = [f"{split}{i}" for i in range(n)]
        return RadiographDataset(make_table({"id": ids, "image": [self.image] * n, "text": ["a b c"] * n}))


class PowerCut(RuntimeError):
    pass


class _Model(L.LightningModule):
    """Records what it sees, and fails at a chosen batch.

    Args:
        stop: number of the batch to fail at, from 1; 0 never.
        where: in the step itself, or "after" the checkpoint of the batch is written (the module's hook comes after
            those of the callbacks).
    """

    def __init__(self, stop: int = 0, where: str = "after"):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.stop, self.where = stop, where
        self.seen: list[tuple[str, float]] = []
        self.validations = 0

    def training_step(self, batch, batch_idx):
        self.stop -= 1
        if self.stop == 0 and self.where == "step":
            raise PowerCut
        # the mean grey level stands for the augmentation, which must continue as well
        self.seen += [(i, round(float(x.mean()), 5)) for i, x in zip(batch["id"], batch["image"], strict=True)]
        return self.layer(torch.ones(1, 1)).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.stop == 0 and self.where == "after":
            raise PowerCut

    def validation_step(self, batch, batch_idx):
        self.validations += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("resume") / "x.png"
    grey = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).save(path)
    return str(path)


@pytest.fixture
def fit(image, tmp_path):
    """Train and return (model, trainer, whether the power was cut)."""

    def run(*, callbacks=(), resume=False, workers=0, validate=False, accumulate=1, stop=0, where="after", **options):
        model = _Model(stop, where)
        trainer = L.Trainer(
            accelerator="cpu",
            accumulate_grad_batches=accumulate,
            limit_val_batches=None if validate else 0,
            num_sanity_val_steps=0,
            callbacks=list(callbacks),
            enable_checkpointing=bool(callbacks),
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"max_epochs": EPOCHS, **options},
        )
        data = _Data(image, batch_size=BATCH, num_workers=workers)
        try:
            trainer.fit(model, datamodule=data, ckpt_path=tmp_path / "last.ckpt" if resume else None)
        except PowerCut:
            return model, trainer, True
        return model, trainer, False

    run.every_step = lambda: ModelCheckpoint(
        tmp_path, filename="last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False
    )
    run.folder = tmp_path
    return run


@pytest.fixture(scope="module")
def whole(image) -> list[tuple[str, float]]:
    """Samples of the uninterrupted run, from the definition: every epoch's order, augmented by (seed, epoch, index)."""
    data = _Data(image, batch_size=BATCH)
    data.setup("fit")
    seen = []
    for epoch in range(EPOCHS):
        order = ResumableSampler(data.train_set, seed=5).order(epoch)[: PER_EPOCH * BATCH].tolist()
        samples = [data.train_set[i, epoch] for i in order]
        seen += [(s["id"], round(float(s["image"].mean()), 5)) for s in samples]
    return seen


STOPS = [1, 4, PER_EPOCH, PER_EPOCH + 2, 2 * PER_EPOCH, 2 * PER_EPOCH + 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_uninterrupted(fit, whole, workers):
    model, *_ = fit(workers=workers)
    assert model.seen == whole
    assert len({i for i, _ in whole[: PER_EPOCH * BATCH]}) == PER_EPOCH * BATCH
    assert [i for i, _ in whole[: PER_EPOCH * BATCH]] != [i for i, _ in whole[PER_EPOCH * BATCH :][: PER_EPOCH * BATCH]]


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", STOPS)
def test_power_cut_after_a_checkpoint(fit, whole, stop, accumulate, validate):
    stop += stop % accumulate  # checkpoints are written at optimiser steps
    _, _, cut = fit(callbacks=[fit.every_step()], stop=stop, accumulate=accumulate, validate=validate)
    assert cut
    model, trainer, _ = fit(resume=True, accumulate=accumulate, validate=validate)
    assert model.seen == whole[stop * BATCH :]
    assert trainer.global_step == EPOCHS * PER_EPOCH // accumulate
    assert trainer.current_epoch == EPOCHS


@pytest.mark.parametrize(("stop", "validate", "accumulate"), [(4, False, 1), (PER_EPOCH, True, 1), (8, True, 2)])
def test_power_cut_with_workers(fit, whole, stop, validate, accumulate):
    fit(callbacks=[fit.every_step()], stop=stop, workers=2, validate=validate, accumulate=accumulate)
    model, *_ = fit(resume=True, workers=2, validate=validate, accumulate=accumulate)
    assert model.seen == whole[stop * BATCH :]


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_max_steps_then_more_epochs(fit, whole, stop, validate):
    first, *_ = fit(callbacks=[fit.every_step()], max_steps=stop, max_epochs=-1, validate=validate)
    assert first.seen == whole[: stop * BATCH]
    model, *_ = fit(resume=True, validate=validate)
    assert model.seen == whole[stop * BATCH :]


@pytest.mark.parametrize("saved", ["at a step", "after the fit"])
@pytest.mark.parametrize("stop", STOPS)
def test_max_steps_then_more_steps(fit, whole, stop, saved):
    _, trainer, _ = fit(callbacks=[fit.every_step()] if saved == "at a step" else [], max_steps=stop, max_epochs=-1)
    if saved == "after the fit":  # where Lightning counts the cut epoch as finished
        trainer.save_checkpoint(fit.folder / "last.ckpt")
    model, *_ = fit(resume=True, max_steps=EPOCHS * PER_EPOCH, max_epochs=-1)
    assert model.seen == whole[stop * BATCH :]


def test_cut_epoch_goes_on_as_the_next(fit, whole):
    """A finished fit that max_steps cut: Lightning starts a new epoch, the stream of samples goes on in the old one."""
    _, trainer, _ = fit(max_steps=4, max_epochs=-1)
    trainer.save_checkpoint(fit.folder / "last.ckpt")
    model, *_ = fit(resume=True, workers=2)
    assert model.seen == whole[4 * BATCH :][: len(model.seen)]
    assert len(model.seen) == 2 * PER_EPOCH * BATCH


@pytest.mark.parametrize("stop", [1, 4, PER_EPOCH + 1, PER_EPOCH + 3])
def test_exception_inside_a_step(fit, whole, stop):
    _, _, cut = fit(callbacks=[OnExceptionCheckpoint(fit.folder, "last")], stop=stop, where="step")
    assert cut
    model, *_ = fit(resume=True)
    assert model.seen == whole[(stop - 1) * BATCH :]


def test_resumed_twice(fit, whole):
    fit(callbacks=[fit.every_step()], stop=2)
    again, *_ = fit(callbacks=[fit.every_step()], resume=True, stop=PER_EPOCH, workers=2)
    assert again.seen == whole[2 * BATCH :][: PER_EPOCH * BATCH]
    model, *_ = fit(resume=True, validate=True)
    assert model.seen == whole[(2 + PER_EPOCH) * BATCH :]


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_limited_epochs(fit, whole, stop):
    """limit_train_batches shortens the epochs; the rest of each order is never used."""
    short = [pair for e in range(EPOCHS) for pair in whole[e * PER_EPOCH * BATCH :][: 4 * BATCH]]
    fit(callbacks=[fit.every_step()], limit_train_batches=4, stop=stop)
    model, *_ = fit(resume=True, limit_train_batches=4, workers=2)
    assert model.seen == short[stop * BATCH :]


def test_validation_in_mid_epoch(fit, whole):
    fit(callbacks=[fit.every_step()], stop=3, validate=True, val_check_interval=3)
    model, *_ = fit(resume=True, validate=True, val_check_interval=3)
    assert model.seen == whole[3 * BATCH :]


def test_another_batch_count_warns(fit):
    fit(callbacks=[fit.every_step()], stop=2)
    checkpoint = torch.load(fit.folder / "last.ckpt", weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"batches_per_epoch": PER_EPOCH}]
    loader = _Data("", batch_size=BATCH * 2).train_dataloader()
    with pytest.warns(UserWarning, match="3 batches per device now and had 6"):
        loader.load_state_dict({"batches_per_epoch": PER_EPOCH})
