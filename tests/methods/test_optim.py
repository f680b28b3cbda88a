import itertools
import math

import pytest
import torch
from helpers import datamodule, sizes, trainer
from medvlp_baselines.template.module import TemplateMethod
from torch import nn

from medvlp.errors import ConfigError
from medvlp.training.optim import (
    OptimConfig,
    build_optimizer,
    build_schedule,
    parameter_groups,
    warm_restarts,
    warmup_cosine,
)


def rates(config, total, steps=None):
    """The learning rate that each optimiser step sees."""
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    entry = build_schedule(optimizer, config, total)
    seen = []
    for _ in range(steps or total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if entry is not None:
            entry["scheduler"].step()
    return seen


def test_decay_spares_norms_and_biases_unless_told_otherwise():
    model = TemplateMethod(**sizes())
    for parameter in model.text_encoder.model.embeddings.parameters():
        parameter.requires_grad = False
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    decayed, spared = parameter_groups(model, 0.1, decay_all=False)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    spared_ids = {id(p) for p in spared["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_vector = name.endswith("bias") or "norm" in name.lower() or "bn" in name
        assert (id(parameter) in spared_ids) == (is_vector or parameter.ndim == 1), name
    assert {id(p) for g in (decayed, spared) for p in g["params"]} == trainable
    (single,) = parameter_groups(model, 0.1, decay_all=True)
    assert {id(p) for p in single["params"]} == trainable


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_optimisers(name, kind):
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(optimizer=name, lr=0.3, weight_decay=0.2))
    assert type(optimizer) is kind
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0.0)]


@pytest.mark.parametrize("warmup", [10, 0.1])
def test_warmup_and_cosine(warmup):
    seen = rates(OptimConfig(lr=1e-3, warmup=warmup, min_lr=1e-5), 100)
    assert seen[0] == pytest.approx(1e-5 + 0.1 * (1e-3 - 1e-5))
    assert seen[9] == pytest.approx(1e-3) == max(seen)
    assert all(a < b for a, b in itertools.pairwise(seen[:10]))
    assert all(a > b for a, b in itertools.pairwise(seen[9:]))
    assert 1e-5 < seen[-1] < 1e-5 + 2e-6
    middle = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (50 + 1 - 10) / 91))
    assert seen[50] == pytest.approx(middle)


def test_after_the_end_the_floor_is_kept():
    assert rates(OptimConfig(lr=1e-3, min_lr=1e-4), 20, steps=30)[-1] == pytest.approx(1e-4)


def test_warm_restarts():
    seen = rates(OptimConfig(lr=2e-5, schedule="warm_restarts", min_lr=1e-8, restart_period=200), 450)
    assert seen[0] == seen[200] == seen[400] == pytest.approx(2e-5)
    assert seen[100] == pytest.approx(1e-8 + (2e-5 - 1e-8) / 2)
    assert 1e-8 < seen[199] < 2e-8
    assert seen[:200] == seen[200:400]
    assert rates(OptimConfig(schedule="constant", lr=0.1), 3) == [0.1] * 3


def test_plateau_watches_the_validation_loss():
    config = OptimConfig(schedule="plateau", lr=1.0)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    entry = build_schedule(optimizer, config, 100)
    assert (entry["monitor"], entry["interval"]) == ("val/loss", "epoch")
    for _ in range(7):
        entry["scheduler"].step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_cosine_needs_an_end():
    config = OptimConfig()
    with pytest.raises(ConfigError, match="max_epochs"):
        build_schedule(build_optimizer(nn.Linear(2, 2), config), config, float("inf"))


def test_formulas_at_their_corners():
    assert warmup_cosine(0, lr=1, warmup=0, total=10) == 1
    assert warmup_cosine(10, lr=1, warmup=0, total=10) == pytest.approx(0)
    assert warmup_cosine(4, lr=1, warmup=4, total=10) == 1
    assert warmup_cosine(2, lr=1, warmup=4, total=10, start_lr=0.5) == 0.75
    assert warm_restarts(15, lr=1, period=10) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_the_fused_kernel_makes_the_same_steps(kind):
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    fast = build_optimizer(ours, OptimConfig(optimizer=kind, lr=0.01, weight_decay=0.1, decay_all=True))
    assert all(group["fused"] for group in fast.param_groups)
    settings = {"momentum": 0.9} if kind == "sgd" else {}
    slow = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[kind](
        plain.parameters(), lr=0.01, weight_decay=0.1, fused=False, foreach=False, **settings
    )
    for _ in range(5):
        x = torch.randn(8, 5)
        for model, optimizer in ((ours, fast), (plain, slow)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


def test_a_fused_optimiser_can_be_clipped_in_half_precision(tmp_path):
    run = trainer(tmp_path, max_steps=1, precision="bf16-mixed", gradient_clip_val=0.25)
    run.fit(TemplateMethod(**sizes()), datamodule=datamodule(tmp_path, batch_size=4))
    assert run.optimizers[0].param_groups[0]["fused"]
