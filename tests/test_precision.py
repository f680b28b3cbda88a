"""Every method and every task in every precision of the trainer, and what must not lose digits there."""

import functools
import math

import pytest
import torch
from evaluators import checkpoint, phantom
from helpers import SIZE, TINY, batch, build, datamodule, image_config, trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

import medvlp
from medvlp import registry
from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.datamodules.siim import SIIMDataModule
from medvlp.losses import segmentation as losses
from medvlp.methods.g2d.pseudo_mask import PseudoMaskSettings, pseudo_mask
from medvlp.scoring.heatmaps import centre_prior, min_max
from medvlp.tasks.classification import Classification
from medvlp.tasks.detection.task import Detection
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.grounding import Grounding
from medvlp.tasks.retrieval import Retrieval
from medvlp.tasks.segmentation import Segmentation
from medvlp.tasks.zero_shot import ZeroShotClassification

PRECISIONS = {
    "32-true": 1e-6,
    "64-true": 1e-3,
    "bf16-mixed": 0.1,
    "16-mixed": 0.03,
    "bf16-true": 0.1,
    "16-true": 0.03,
}
"""How far the first loss may be from that in 32-true, relatively. Batch norms over four pairs amplify rounding: MGCA's
loss is 5 % off in bfloat16."""
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
NAMES = [entry.name for entry in registry.methods()]
RARE = ("64-true", "16-true")
every_precision = pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=pytest.mark.variant if name in RARE else ()) for name in PRECISIONS]
)


class Watch(Callback):
    """The first loss of a run, and whether all gradients were finite."""

    def __init__(self):
        self.losses, self.finite = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        found = [p.grad.isfinite().all() for p in pl_module.parameters() if p.grad is not None]
        self.finite.append(bool(found) and bool(torch.stack(found).all()))


def run(folder, precision, **options):
    # Lightning takes bf16-mixed for 16-mixed on a CPU; this is the one of GPUs, with a scale that does not overflow
    half = {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))}
    how = half if precision == "16-mixed" else {"precision": precision}
    return trainer(folder, **{"max_epochs": 1, "num_sanity_val_steps": 0, **how, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("precision")


@pytest.fixture(scope="module")
def first_loss(folder):
    """The first loss in 32-true, by what is trained; each run once."""

    @functools.cache
    def of(train):
        watch = Watch()
        train(run(folder / "reference", "32-true", limit_train_batches=1, limit_val_batches=0, callbacks=[watch]))
        return watch.losses[0]

    return of


@functools.cache
def _fit_method(name, folder):
    def fit(trainer):
        changes = {}
        if name == "imagenet":
            torch.save(build("random").image_encoder.model.state_dict(), folder / "weights.pth")
            changes["image"] = image_config(weights=str(folder / "weights.pth"))
        model, data = build(name, **changes), datamodule(folder / "pairs", batch_size=4)
        trainer.fit(model, datamodule=data)
        return model, data

    return fit


@every_precision
@pytest.mark.parametrize("name", NAMES)
def test_every_method(name, precision, folder, tmp_path):
    watch, fit = Watch(), _fit_method(name, folder)
    it = run(tmp_path, precision, limit_train_batches=2, callbacks=[watch])
    model, data = fit(it)
    path = tmp_path / "checkpoints" / "last.ckpt"
    if watch.losses:
        assert all(watch.finite)
        assert all(map(math.isfinite, watch.losses))
        assert math.isfinite(it.callback_metrics["val/loss"])
        it.save_checkpoint(path)
    for part in it.predict(model, dataloaders=data.val_dataloader()):
        assert part["image"].isfinite().all()
        assert part["image"].numpy().dtype == "float32"
    loaded = medvlp.load(path)
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32 or not value.is_floating_point(), key
        torch.testing.assert_close(value, model.state_dict()[key].to(value.dtype), rtol=0, atol=0, msg=key)
    images = batch(2)["image"]
    asked = loaded.to(TRUE.get(precision, torch.float32)).eval()
    with torch.no_grad():
        assert asked.embed_image(images).dtype == torch.float32, "images come in float32, whatever the weights are"
        if asked.has_text:
            assert asked.zero_shot([images[0]], ["Edema"]).notna().all(axis=None)
            for maps in asked.explain({**batch(2), "image": images}).values():
                assert maps.float().numpy().shape == (2, 1, SIZE, SIZE)


def _first_losses(name, precision):
    """The loss of one fixed batch of varied images, and whether its gradients are finite."""
    given, generator = batch(4), torch.Generator().manual_seed(0)
    blocks = torch.nn.functional.interpolate(torch.rand(4, 1, 8, 8, generator=generator), SIZE)
    dtype = TRUE.get(precision, torch.float32)
    given["image"] = blocks.expand(-1, 3, -1, -1).contiguous().to(dtype)
    model, half = build(name).train().to(dtype), torch.float16 if precision == "16-mixed" else torch.bfloat16
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=half, enabled="mixed" in precision):
        loss = torch.stack([term.double() for term in model.losses(given).values()]).sum()
    loss.backward()
    return float(loss), all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_precision
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("random", "imagenet")])
def test_the_loss_of_one_batch(name, precision):
    loss, finite = _first_losses(name, precision)
    assert finite
    assert loss == pytest.approx(_first_losses(name, "32-true")[0], rel=PRECISIONS[precision])


@pytest.fixture(scope="module")
def tasks(folder):
    """Task and data by name; between them they take every method's checkpoint and every kind of head."""
    roots = {name: phantom(name, folder / name) for name in ("rsna", "siim", "mimic_cxr")}
    deep = image_config(name="resnet18", depth=4, options={})
    settings = {**TINY, "g2d": {"image": deep, "decoder_widths": [8, 8, 8, 8]}}
    names = ("convirt", "g2d", "gloria", "maco", "mgca", "random")
    made = {name: checkpoint(folder / f"{name}.ckpt", name, **settings.get(name, {})) for name in names}
    data = {"transform": "plain", "image_size": SIZE, "batch_size": 8, "eval_batch_size": 8}
    options = {"image_size": SIZE, "resamples": 3}

    def of(name):
        return EncoderSource(checkpoint=made[name])

    def rsna(task):
        return RSNADataModule(roots["rsna"], task=task, split="g2d", **data)

    def siim(task):
        return SIIMDataModule(roots["siim"], task=task, split="clean", **data)

    def mimic():
        return MIMICCXRDataModule(roots["mimic_cxr"], labels="truth", views=["PA", "AP", ""], **data)

    return {
        "linear": lambda: (Classification(of("mgca"), **options), rsna("classification")),
        "finetune": lambda: (Classification(of("maco"), "finetune_maco", **options), rsna("classification")),
        "segmentation": lambda: (Segmentation(of("g2d"), transfer_decoder=True, **options), siim("segmentation")),
        "detection": lambda: (Detection(of("random"), width=0.0625, **options), rsna("detection")),
        "zero_shot": lambda: (
            ZeroShotClassification(of("gloria"), "gloria", prompts="phantom", **options),
            siim("classification"),
        ),
        "grounding": lambda: (Grounding(of("maco"), "maco", priors=["centre"], **options), siim("grounding")),
        "retrieval": lambda: (Retrieval(of("convirt"), **options), mimic()),
    }


TASKS = ("linear", "finetune", "segmentation", "detection", "zero_shot", "grounding", "retrieval")


@functools.cache
def _fit_task(make):
    def fit(trainer):
        task, data = make()
        if task.trains:
            trainer.fit(task, datamodule=data)
        return task, data

    return fit


@every_precision
@pytest.mark.parametrize("name", TASKS)
def test_every_task(name, precision, tasks, first_loss, tmp_path):
    watch, fit = Watch(), _fit_task(tasks[name])
    it = run(tmp_path, precision, limit_train_batches=2, callbacks=[watch])
    task, data = fit(it)
    if task.trains:
        assert all(watch.finite)
        assert watch.losses[0] == pytest.approx(first_loss(fit), rel=PRECISIONS[precision])
        it.validate(task, datamodule=data, verbose=False)
        assert math.isfinite(it.callback_metrics["val/loss"])
    it.test(task, datamodule=data, verbose=False)
    assert len(task.rows) > 0
    assert any(math.isfinite(row.value) for row in task.rows)


@pytest.mark.parametrize("precision", TRUE)
def test_average_and_chunks(precision, tmp_path):
    """The average moves by less than half precision can tell, and validation does not round it."""
    model, data = (
        build("template", ema_decay=0.999, contrastive_chunks=2),
        datamodule(tmp_path, batch_size=4),
    )
    keep = ModelCheckpoint(tmp_path / "all", "{step}", every_n_train_steps=1, save_top_k=-1)
    run(tmp_path, precision, max_epochs=2, callbacks=[keep]).fit(model, datamodule=data)
    saved = [torch.load(tmp_path / "all" / f"step={s}.ckpt", weights_only=True) for s in range(1, 5)]
    for key, first in saved[0]["current_model_state"].items():
        expected = first
        for content in saved[1:] if first.is_floating_point() else ():
            own = torch.promote_types(expected.dtype, torch.float32)
            expected = torch.lerp(expected.to(own), content["current_model_state"][key].to(own), 0.001)
        average = saved[-1]["state_dict"][key]
        if first.is_floating_point():
            assert average.dtype == torch.promote_types(TRUE[precision], torch.float32)
            torch.testing.assert_close(average, expected.to(average.dtype), rtol=1e-6, atol=1e-7, msg=key)
    assert medvlp.load(tmp_path / "all" / "step=4.ckpt").image_head.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_in_float32(dtype):
    for model in (build("g2d"), build("maco")):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.to(dtype)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        assert all(norm.running_var.dtype == torch.float32 for norm in norms)
        assert model.image_encoder.model.state_dict()[next(iter(model.image_encoder.model.state_dict()))].dtype == dtype
        if model.name == "maco":
            torch.testing.assert_close(model.logit_scale.data, before["logit_scale"], rtol=0, atol=0)
        model.double()
        assert all(p.dtype == torch.float64 for p in model.parameters())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_truth_keeps_its_digits(precision, tasks, tmp_path):
    """Boxes, masks and anchors are those of 32-true; the images are of the run's precision."""
    seen = {}

    class Batches(Callback):
        def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            seen[str(trainer.precision)] = (batch, pl_module.head.anchors.clone())

    for other in ("32-true", precision):
        task, data = tasks["detection"]()
        it = run(tmp_path / other, other, limit_train_batches=1, callbacks=[Batches()])
        it.fit(task, datamodule=data)
        it.test(task, datamodule=data, verbose=False)
    (want, anchors), (got, own_anchors) = seen["32-true"], seen[precision]
    torch.testing.assert_close(own_anchors, anchors, rtol=0, atol=0)
    torch.testing.assert_close(got["boxes"], want["boxes"], rtol=0, atol=0)
    torch.testing.assert_close(got["label"], want["label"], rtol=0, atol=0, equal_nan=True)
    inputs = got["features"] if "features" in got else [got["image"]]
    assert {value.dtype for value in inputs} == {TRUE[precision]}


def test_stored_features_of_another_precision_are_not_taken(tasks, tmp_path):
    for count, precision in enumerate(("32-true", "bf16-true"), start=1):
        task, data = tasks["linear"]()
        task.features_dir = str(tmp_path / "features")
        run(tmp_path / precision, precision, limit_train_batches=1, limit_val_batches=0).fit(task, datamodule=data)
        assert len(list((tmp_path / "features").iterdir())) == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["dice_bce_paper", "dice_bce_official", "focal_dice_mgca", "bce_dice_medklip",
                                  "focal_dice_maco", "soft_dice_loss", "squared_dice_loss", "focal_loss"])  # fmt: skip
def test_sums_over_an_image_do_not_overflow(name, dtype):
    """An image of 300 px has more pixels than float16 can count."""
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(2, 1, 300, 300, generator=generator).to(dtype), torch.ones(2, 1, 300, 300, dtype=dtype)
    loss = getattr(losses, name)
    found, expected = loss(*given), loss(*(value.double() for value in given))
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def half_by_default():
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_type_of_new_tensors_changes_no_number(half_by_default):
    """Inside of a step a half-precision run makes it the default, for whatever names no type."""
    images, attention = batch(2)["image"].float(), torch.rand(2, 3, 8, 8, dtype=torch.float32)
    for threshold in (0.85, "mean", "gmm"):
        settings = PseudoMaskSettings(threshold=threshold)
        inside = pseudo_mask(attention, images, settings).mask
        torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(inside, pseudo_mask(attention, images, settings).mask, rtol=0, atol=0)
        torch.set_default_dtype(torch.float16)
    assert centre_prior(40, 50).dtype == torch.float32
    noise = build("maco")._draw(images)
    assert noise.dtype == torch.float32, "or patches tie, and those at the top stay visible"


def test_small_differences_are_stretched_in_half_precision():
    maps = torch.tensor([[[0.0, 2e-5], [1e-5, 2e-5]]], dtype=torch.float16)
    torch.testing.assert_close(min_max(maps)[0, 0], torch.tensor([0.0, 1.0]))
