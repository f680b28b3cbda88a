"""Options of every method: determinism, precision, decay of tables."""

import pytest
import torch
from helpers import batch, datamodule, sizes, text_config, trainer
from medvlp_baselines.convirt.module import ConVIRT
from medvlp_baselines.template.module import TemplateMethod

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.methods.g2d.module import G2D
from medvlp.training.optim import OptimConfig, build_optimizer, parameter_groups

KINDS = {
    "g2d": lambda **k: G2D(**sizes(**k)),
    "g2d official": lambda **k: G2D(variant="official", pixel_loss_start=0, **sizes(**k)),
    "convirt": lambda **k: ConVIRT(**sizes(**k)),
    "convirt mgca": lambda **k: ConVIRT(variant="mgca", **sizes(**k)),
    "template": lambda **k: TemplateMethod(**sizes(**k)),
}


def build(method, **changes):
    torch.manual_seed(0)
    return KINDS[method](optim=OptimConfig(lr=1e-3, schedule="constant"), **changes)


def fitted(folder, model, **options):
    run = trainer(folder, **{"limit_train_batches": 2, "limit_val_batches": 1, **options})
    run.fit(model, datamodule=datamodule(folder / "data", batch_size=4))
    return run


@pytest.mark.parametrize("method", KINDS)
def test_deterministic_algorithms_are_all_there_are(tmp_path, method):
    made = []
    try:
        for name in ("a", "b"):
            model = build(method)
            fitted(tmp_path / name, model, deterministic=True, enable_checkpointing=False)
            made.append(model.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(made[0][n], v) for n, v in made[1].items())


@pytest.mark.parametrize("method", KINDS)
def test_losses_are_float32_under_autocast(method):
    model, data = build(method).train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.losses(data, model(data))
    for name, term in terms.items():
        assert term.dtype == torch.float32, name
        assert torch.isfinite(term)


@pytest.mark.parametrize("method", KINDS)
def test_no_bfloat16_run_needs_float16(tmp_path, method):
    model = build(method)
    fitted(tmp_path, model, precision="bf16-mixed", enable_checkpointing=False)
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())


def test_tables_of_positions_may_be_spared():
    model = G2D(**sizes(image=ImageEncoderConfig("test_vit", depth=1), decoder_loss="none"))
    names = {id(p): n for n, p in model.named_parameters()}
    normal = parameter_groups(model, 0.1, decay_all=False)
    spared = parameter_groups(model, 0.1, decay_all=False, decay_positions=False)
    moved = {names[id(p)] for p in spared[1]["params"]} - {names[id(p)] for p in normal[1]["params"]}
    assert moved == {
        "image_encoder.model.model.pos_embed",
        "image_encoder.model.model.cls_token",
        "pool.positional_embedding",
        "text_encoder.model.embeddings.position_embeddings.weight",
        "text_encoder.model.embeddings.token_type_embeddings.weight",
    } | {n for n in moved if "reg_token" in n}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1, decay_positions=False))
    assert len(optimizer.param_groups[1]["params"]) == len(spared[1]["params"])


def test_dropout_survives_the_switches_of_a_run(tmp_path):
    """From the first step on, and after validations, without anyone calling train()."""
    for dropout in (False, True):
        model = build("template", text=text_config(dropout=dropout))
        modes = []
        model.on_train_batch_start = lambda batch, batch_idx, m=model, seen=modes: seen.append(
            m.text_encoder.model.training
        )
        run = trainer(tmp_path / str(dropout), limit_train_batches=2, max_epochs=2, enable_checkpointing=False)
        run.fit(model, datamodule=datamodule(tmp_path / "data"))
        assert modes == [dropout] * 4
