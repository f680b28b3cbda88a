"""Optimiser and learning-rate schedule from one config."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from medvlp import compat
from medvlp.errors import ConfigError, check_range


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule.

    Args:
        optimizer: "adamw", "adam" or "sgd" (momentum 0.9).
        lr: peak learning rate.
        weight_decay: decoupled for adamw, L2 otherwise.
        betas: of Adam.
        decay_all: also decay norms and biases, as all released code does; False exempts one-dimensional parameters.
        decay_positions: without ``decay_all``, also decay position tables, class and mask tokens and token types (as
            the masked autoencoders do); False exempts them (as timm does).
        schedule: "warmup_cosine", "warm_restarts" (released G2D), "plateau" (halved when ``val/loss`` stalls for 5
            validations: ConVIRT) or "constant".
        warmup: warm-up length: a share of all steps if below 1, else a number of steps.
        min_lr: final learning rate of the cosine.
        restart_period: steps per cycle of "warm_restarts".
    """

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 2e-4
    weight_decay: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    decay_all: bool = False
    decay_positions: bool = True
    schedule: Literal["warmup_cosine", "warm_restarts", "plateau", "constant"] = "warmup_cosine"
    warmup: float = 0.05
    min_lr: float = 0.0
    restart_period: int = 200

    def __post_init__(self) -> None:
        check_range("(0, inf)", lr=self.lr)
        check_range("[0, inf)", weight_decay=self.weight_decay, warmup=self.warmup, min_lr=self.min_lr)
        check_range("[0, 1)", betas=self.betas)
        check_range("[1, inf)", restart_period=self.restart_period)


_POSITIONS = {
    *("pos_embed", "positional_embedding", "position_embeddings", "relative_position_bias_table"),
    *("cls_token", "reg_token", "dist_token", "mask_token", "token_type_embeddings"),
}
"""Names of position tables and special tokens in timm, Hugging Face and here."""


def parameter_groups(
    module: nn.Module, weight_decay: float, decay_all: bool, decay_positions: bool = True
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups with and without weight decay; see :class:`OptimConfig`."""
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if decay_all or not weight_decay:
        return [{"params": [p for _, p in trainable], "weight_decay": weight_decay}]

    def exempt(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim <= 1 or (not decay_positions and not _POSITIONS.isdisjoint(name.split(".")))

    groups = [
        {"params": [p for name, p in trainable if not exempt(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if exempt(name, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adam_eps(groups: list[dict[str, Any]]) -> float:
    """Return Adam's ε: 1e-8, or 1e-3 for float16 weights, where 1e-8 is 0 and squares of gradients < 5e-3 vanish."""
    half = any(parameter.dtype == torch.float16 for group in groups for parameter in group["params"])
    return 1e-3 if half else 1e-8


def build_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """Return an optimiser of the module's trainable parameters."""
    groups = parameter_groups(module, config.weight_decay, config.decay_all, config.decay_positions)
    # torch's default on a CPU is the loop, which passes over all weights several times a step
    fused = True if all(p.device.type == "cpu" for group in groups for p in group["params"]) else None
    optimizer: Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=fused)
    else:
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        first, second = config.betas
        optimizer = kind(groups, lr=config.lr, betas=(first, second), eps=adam_eps(groups), fused=fused)
    compat.unscale_before_step(optimizer)
    return optimizer


def build_schedule(optimizer: Optimizer, config: OptimConfig, total_steps: float) -> dict[str, Any] | None:
    """Return Lightning's scheduler entry, stepped per optimiser step ("plateau": per validation), or None.

    ``total_steps`` are the optimiser steps of the whole run.
    """
    if config.schedule == "constant":
        return None
    if config.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
        return {"scheduler": plateau, "monitor": "val/loss", "interval": "epoch", "strict": False}
    if config.schedule == "warmup_cosine" and total_steps == float("inf"):
        raise ConfigError("schedule warmup_cosine needs a finite run: set trainer.max_epochs or trainer.max_steps")
    warmup = config.warmup * total_steps if config.warmup < 1 else config.warmup

    def factor(step: int) -> float:
        if config.schedule == "warm_restarts":
            return warm_restarts(step, lr=config.lr, period=config.restart_period, min_lr=config.min_lr) / config.lr
        # step + 1 and total + 1: neither the first nor the last step has a rate of zero
        rate = warmup_cosine(step + 1, lr=config.lr, warmup=warmup, total=total_steps + 1, min_lr=config.min_lr)
        return rate / config.lr

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}


def warmup_cosine(
    step: float, *, lr: float, warmup: float, total: float, min_lr: float = 0.0, start_lr: float | None = None
) -> float:
    """Linear warm-up, then half a cosine (MGCA, MaCo and, by the paper, G2D).

    ``start + (lr − start)·t/W`` for t < W, then ``min + (lr − min)·½(1 + cos(π (t − W)/(T − W)))`` until T. Step t,
    warm-up W and total T are in optimiser steps or fractional epochs. ``start_lr`` defaults to ``min_lr``.
    """
    start = min_lr if start_lr is None else start_lr
    if step < warmup:
        return start + (lr - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(total - warmup, 1e-12))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def warm_restarts(step: float, *, lr: float, period: float, min_lr: float = 0.0) -> float:
    """Cosine from ``lr`` to ``min_lr``, restarted every ``period`` steps (G2D's released trainer: 200)."""
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step % period) / period))
