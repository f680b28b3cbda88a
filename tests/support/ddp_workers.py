"""What each of two or four gloo processes does for ``ddp/test_gloo.py``, and the same in one process.

All numbers are float64 where the library allows it (its losses compute Dice and BCE in float32): the batch is summed
in another order by two processes than by one, and in float32 the rounding of that alone, magnified by 1/τ and by batch
norm, comes near the 1e-5 that is asked for. In float64 what is left above 1e-5 is a wrong formula.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import batch, image_config, text_config
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PAIRS = 8
SIZE = 64

_MACO: dict[str, Any] = {
    "image": image_config(
        name="vit_tiny_patch16_224", depth=None, options={"embed_dim": 32, "depth": 3, "num_heads": 2}
    ),
    **{"super_resolution": False, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    # Groups of pairs of several processes, the last one smaller.
    "group": 5,
}
PATCHES = (SIZE // 16) ** 2

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "g2d paper": ("g2d", {"variant": "paper"}),
    "g2d both directions": ("g2d", {"variant": "paper", "text_to_image": 1.0, "aggregate_heads": False}),
    "convirt paper": ("convirt", {"variant": "paper"}),
    "gloria paper": ("gloria", {"variant": "paper", "text_layers": 1}),
    "template": ("template", {}),
    "mgca paper": ("mgca", {"variant": "paper", "num_prototypes": 12, "head_dim": 24}),
    "maco paper": ("maco", {"variant": "paper", **_MACO}),
    "maco official": ("maco", {"variant": "official", **_MACO}),
}
"""Global contrast: processes with their share of the batch each must equal one with all of it."""

CHUNKED: dict[str, tuple[str, dict[str, Any]]] = {
    "g2d chunked": ("g2d", {"variant": "paper", "text_to_image": 1.0}),
    "convirt chunked": ("convirt", {"variant": "paper"}),
    "mgca chunked": ("mgca", {"variant": "paper", "num_prototypes": 12, "head_dim": 24}),
    "maco chunked": ("maco", {"variant": "paper", **_MACO}),
    "gloria chunked": ("gloria", {"variant": "paper", "text_layers": 1}),
    "template chunked": ("template", {}),
}
"""Each process encodes its share in :data:`CHUNKS` chunks, one process the whole in one; norms in eval mode."""

CHUNKS = 2

LOCAL = ("g2d", {"variant": "official", "pixel_loss_start": 0})
"""Contrast per rank."""


class _Sum(torch.autograd.Function):
    """Sum over ranks; what the ranks send back is summed as well, since each of their losses sees the sum."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class GlobalBatchNorm(nn.Module):
    """Batch norm over the batches of all ranks, in two passes. torch's SyncBatchNorm has no CPU version."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = dist.get_world_size() * x.numel() / x.shape[1]
        mean = (_Sum.apply(x.sum(axes)) / count).view(shape)
        variance = (_Sum.apply(((x - mean) ** 2).sum(axes)) / count).view(shape)
        y = (x - mean) / (variance + self.eps).sqrt()
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


def synchronise(module: nn.Module) -> nn.Module:
    """Every batch norm replaced, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            synchronise(child)
    return module


def build(method: str, options: dict[str, Any]) -> nn.Module:
    """A tiny method in train mode and float64, the same in every process."""
    from medvlp.registry import get_method

    torch.manual_seed(0)
    arguments = {
        "image": image_config(name="resnet18", depth=3),
        "text": text_config(pooling="max" if method == "convirt" else "cls"),
        "image_size": SIZE,
        "prompts": None,
        **({} if method == "maco" else {"embed_dim": 16}),  # its joint space is the text encoder's
        **options,
    }
    model = get_method(method)(**arguments).double().train()
    with torch.no_grad():
        # timm starts the last norm of each block at zero, and with it the gradients of everything before it.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def part(rank: int | None, world: int = 1) -> dict[str, Any]:
    """The whole batch, or a rank's share of it."""
    whole = batch(PAIRS, SIZE)
    whole["image"] = whole["image"].double()
    whole["mask_noise"] = torch.rand(PAIRS, PATCHES, generator=torch.Generator().manual_seed(0))
    if rank is None:
        return whole
    share = PAIRS // world
    return {key: value[rank * share : (rank + 1) * share] for key, value in whole.items()}


class Step(nn.Module):
    """The sum of a method's losses as a module, which DistributedDataParallel can wrap."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, items: dict[str, Any]) -> dict[str, Tensor]:
        return self.method.losses(items, self.method.encode(items))


def outcome(step: nn.Module, method: nn.Module, items: dict[str, Any], times: int = 1) -> dict[str, Any]:
    """Loss terms and gradients. Twice in a row shows DistributedDataParallel parameters that got no gradient."""
    for _ in range(times):
        method.zero_grad()
        terms = step(items)
        torch.stack([term.double() for term in terms.values()]).sum().backward()
    return {
        "terms": {key: float(value.detach()) for key, value in terms.items()},
        "gradients": {name: p.grad.clone() for name, p in method.named_parameters() if p.requires_grad},
    }


def freeze_norms(module: nn.Module) -> nn.Module:
    """Every batch norm in eval mode, in place."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()
    return module


def alone() -> dict[str, Any]:
    """One process: each case on the whole batch, and the local case on both halves of it."""
    made = {}
    for case, (method, options) in CASES.items():
        model = build(method, options)
        made[case] = outcome(Step(model), model, part(None))
    for case, (method, options) in CHUNKED.items():
        model = freeze_norms(build(method, options))
        made[case] = outcome(Step(model), model, part(None))
    for rank in range(2):
        model = build(*LOCAL)
        made[f"local {rank}"] = outcome(Step(model), model, part(rank, 2))
    return made


def _gather(rank: int) -> dict[str, Any]:
    from medvlp import distributed

    x = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    everything = distributed.all_gather(x)
    # Each rank's loss weights the rows differently: 1·row sums on rank 0, (1 + row number)·row sums on rank 1.
    weights = torch.ones(6) if rank == 0 else 1 + torch.arange(6.0)
    (weights[:, None] * everything).sum().backward()
    return {"gathered": everything.detach(), "gradient": x.grad}


def evaluate(root: str, folder: str, devices: int) -> dict[str, Any]:
    """``trainer.validate`` on the phantom's 19 validation studies, then ``trainer.fit`` for two steps."""
    from helpers import trainer

    from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
    from medvlp.registry import get_method

    data = MIMICCXRDataModule(
        root,
        labels="truth",
        views=("PA", "AP", ""),
        transform="phantom",
        image_size=SIZE,
        batch_size=4,
        eval_batch_size=3,
    )
    torch.manual_seed(0)
    model = get_method("g2d")(
        image=image_config(name="resnet18", depth=3),
        text=text_config(vocab_size=400),
        image_size=SIZE,
        prompts="phantom",
        embed_dim=16,
    )
    options = {"devices": devices, "strategy": "ddp"} if devices > 1 else {}
    run = trainer(Path(folder), limit_train_batches=2, enable_checkpointing=False, **options)
    model.has_weights = True  # random ones do here
    logged = run.validate(model, datamodule=data, verbose=False)[0]
    result = {"logged": logged, "evaluation": model.evaluation, "names": list(data.label_names)}
    if devices > 1:
        run.fit(model, datamodule=data)
        result["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()])
    return result


def work(rank: int, folder: str, root: str, port: int, world: int) -> None:
    """One of the processes; leaves its results in ``folder``. What needs no more than two is done by two alone."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="test",  # tells Lightning that the processes are there already
    )
    dist.init_process_group("gloo", rank=rank, world_size=world)
    made: dict[str, Any] = {}
    for case, (method, options) in CASES.items():
        model = synchronise(build(method, options))
        made[case] = outcome(DistributedDataParallel(Step(model)), model, part(rank, world), times=2)
    for case, (method, options) in CHUNKED.items():
        model = freeze_norms(build(method, {**options, "contrastive_chunks": CHUNKS}))
        made[case] = outcome(DistributedDataParallel(Step(model)), model, part(rank, world), times=2)
    if world == 2:
        made["gather"] = _gather(rank)
        model = build(*LOCAL)
        made["local"] = outcome(DistributedDataParallel(Step(model)), model, part(rank, world), times=2)
        # Teeth: gathering without gradient, as many code bases do, must not pass for the real thing.
        model = synchronise(build(*CASES["template"]))
        model.global_contrast = False
        made["template per rank"] = outcome(DistributedDataParallel(Step(model)), model, part(rank, world))
        made["evaluation"] = evaluate(root, folder, world)
    torch.save(made, Path(folder) / f"rank{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
