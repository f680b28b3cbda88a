"""Times a training step of each method against the bare forward and backward pass of its two encoders.

A step is what Lightning runs per batch: the batch hook, the gradients set to none, encoding, every loss, the backward
pass, the hook after it, and the optimiser's step. Data loading, callbacks and the progress bar are not in it, nor is
the copy of the batch to the device. The bare side runs the same two encoder modules (same weights, same frozen layers,
same mode, same gradients kept) on the same batch, and sends back the mean of the last level and of the report vectors;
it has no optimiser, no heads and no losses. MaCo's encoder sees visible patches alone, so its bare side does, too;
``ratio_whole`` is its fraction of encoders that see the whole image.

Both sides run alternately, so that a busy machine slows both; a ratio is bare over step, of medians. ``cpu_ratio``
compares the processor time of the process, which others on the same cores hardly move. Then a few steps
run under torch's profiler, which attributes each operation, and its backward pass, to the part of the method that
called it: the encoders, each head, each loss, the optimiser. Everything that a step adds is in that table.

    python experiments/speed/step.py                                  # the sizes of the papers, batches of 16
    python experiments/speed/step.py --methods convirt g2d --batch 32
    python experiments/speed/step.py --device cuda --precision bf16 --batch 64
    python experiments/speed/step.py --quick                          # seconds

Encoders have the papers' sizes and random weights; reports are as long as ``--tokens``, by default what the method's
paper cuts them to (ConVIRT takes one sentence of a report: 64). The last line is one JSON object with every figure;
its ``ratio`` is the least of ConVIRT's and G2D's, or of what was run.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import time
import unittest.mock
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from medvlp import registry
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.methods.base import PretrainModule
from medvlp.training.optim import OptimConfig, build_optimizer

VIT = {"name": "vit_base_patch16_224", "final_norm": True}
IMAGES: dict[str, dict[str, Any]] = {
    "gloria": {"name": "resnet50", "upsample_to": 299},
    "mgca": VIT,
    "maco": VIT,
}
"""Image encoders of the papers; all others have a ResNet-50."""

TEXTS: dict[str, dict[str, Any]] = {
    "convirt": {"pooling": "max", "freeze_layers": 6, "freeze_embeddings": True},
    "gloria": {"dropout": True},
    "mgca": {"dropout": True},
    "maco": {"dropout": True, "pooling": "pooler"},
}
"""How the papers use BERT, where it is not trained as a whole without dropout."""

TOKENS = {"g2d": 256, "convirt": 64, "gloria": 97, "mgca": 112, "maco": 100}
"""Word pieces of the longest report; 128 for all others."""

LOSSES: dict[str, list[tuple[str, str]]] = {
    "g2d": [("medvlp.methods.g2d.module", "pseudo_mask"), ("medvlp.methods.g2d.module", "dice_bce_paper")],
    "gloria": [("medvlp_baselines.gloria.module", "local_loss"), ("medvlp_baselines.gloria.module", "word_features")],
    "mgca": [
        ("medvlp_baselines.mgca.module", "token_loss"),
        ("medvlp_baselines.mgca.module", "prototype_loss"),
        ("medvlp_baselines.mgca.module", "merge_report"),
    ],
    "maco": [
        ("medvlp_baselines.maco.losses", "reconstruction_errors"),
        ("medvlp_baselines.maco.losses", "contrast_paper"),
        ("medvlp_baselines.maco.losses", "random_masking"),
    ],
}
"""Functions that are parts of their own in the table, by the module that calls them; ``contrast`` is one everywhere."""

QUICK_VIT = {"name": "vit_tiny_patch16_224", "options": {"embed_dim": 48, "depth": 3, "num_heads": 2}}
_REST = "the rest of the losses"
_PREFIX = "part: "


def build(name: str, args: argparse.Namespace) -> PretrainModule:
    """A method in its paper variant, with random weights."""
    kind = registry.get_method(name)
    image, text = IMAGES.get(name, {"name": "resnet50"}), TEXTS.get(name, {})
    sizes: dict[str, Any] = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "vocab_size": 28996}
    more: dict[str, Any] = {}
    if args.quick:
        image = QUICK_VIT if image is VIT else {**image, "name": "resnet18"}
        image = {**image, **({"upsample_to": args.size + 32} if "upsample_to" in image else {})}
        sizes = {"hidden_size": 48, "num_layers": 4, "num_heads": 2, "vocab_size": 500}
        text = {**text, **({"freeze_layers": 2} if "freeze_layers" in text else {})}
        more = {"maco": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 2}}.get(name, {})
    config = TextEncoderConfig(**{**sizes, **text, "max_length": tokens(name, args)})
    torch.manual_seed(0)
    return kind(image=ImageEncoderConfig(**image), text=config, image_size=args.size, prompts=None, **more)


def tokens(name: str, args: argparse.Namespace) -> int:
    """Length of the longest report."""
    return args.tokens or TOKENS.get(name, 128)


def example(model: PretrainModule, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A batch as a data module gives it: drawn images, reports of random words of one piece each, half of them full."""
    generator = torch.Generator().manual_seed(0)
    longest = tokens(name, args)
    lengths = torch.randint(max(3, longest // 2), longest + 1, (args.batch, 1), generator=generator)
    lengths[0] = longest
    place = torch.arange(longest)
    mask = (place < lengths).long()
    return {
        "image": torch.rand(args.batch, 3, args.size, args.size, generator=generator),
        "input_ids": torch.randint(5, model.text_encoder.vocab_size, (args.batch, longest), generator=generator) * mask,
        "attention_mask": mask,
        "word_groups": (place - 1).where((place > 0) & (place < lengths - 1), -1),
        "text": [""] * args.batch,
        "id": [str(i) for i in range(args.batch)],
        "index": torch.arange(args.batch),
        "skipped": [],
    }


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def visible_patches(model: Any, images: Tensor) -> Tensor:
    """What MaCo's encoder does in training."""
    from medvlp_baselines.maco.autoencoder import encode_patches, patch_tokens
    from medvlp_baselines.maco.losses import random_masking

    return encode_patches(model.vit, random_masking(patch_tokens(model.vit, images)[0], model.mask_ratio)[0])


def last_level(model: PretrainModule, images: Tensor) -> Tensor:
    """The pyramid's last level; all levels are computed."""
    return model.image_encoder(images)[-1]


class Run:
    """A method, its optimiser and a batch, and the two sides that are timed."""

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device) -> None:
        self.name, self.args, self.device = name, args, device
        self.model = build(name, args).to(device).train()
        self.optimizer = build_optimizer(self.model, OptimConfig(lr=1e-6))
        self.host_batch = example(self.model, name, args)
        self.batch = to_device(self.host_batch, device)

    def autocast(self) -> Any:
        """bfloat16 where it is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16")

    def bare(self, image: Callable[[Any, Tensor], Tensor]) -> None:
        """Forward and backward pass of both encoders."""
        self.model.zero_grad(set_to_none=True)
        with self.autocast():
            seen = image(self.model, self.batch["image"])
            report = self.model.text_encoder(self.batch["input_ids"], self.batch["attention_mask"])[1]
        (seen.float().mean() + report.float().mean()).backward()

    def step(self) -> None:
        """A training step."""
        hooked = self.model.on_before_batch_transfer(self.host_batch, 0)
        batch = {**hooked, **self.batch}
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.model.training_step(batch, 0)
        loss.backward()
        self.model.on_after_backward()
        with record_function(f"{_PREFIX}optimiser"):
            self.optimizer.step()
        self.model.on_train_batch_end(loss, batch, 0)

    def sides(self) -> dict[str, Callable[[], None]]:
        """What is timed, by name."""
        if self.name == "maco":
            return {
                "bare": lambda: self.bare(visible_patches),
                "step": self.step,
                "bare_whole": lambda: self.bare(last_level),
            }
        return {"bare": lambda: self.bare(last_level), "step": self.step}


def synchronise(device: torch.device) -> None:
    """Waits for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    sides: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each side, by the clock and of the processor; in turns, the first of which does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            synchronise(device)
            start, busy = time.perf_counter(), time.process_time()
            side()
            synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - busy)
    first, second = ({k: statistics.median(v) for k, v in times.items()} for times in (seconds, processor))
    return first, second


# ---------------------------------------------------------------- term by term


def _named(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(_PREFIX + part):
            return function(*args, **kwargs)

    return inside


@contextlib.contextmanager
def parts_named(model: PretrainModule, name: str) -> Iterator[None]:
    """While it lasts, each child module, the contrast, all losses and :data:`LOSSES` run under their names."""
    with contextlib.ExitStack() as stack:
        for part, child in model.named_children():
            if isinstance(child, nn.Module) and any(True for _ in child.parameters()):
                stack.enter_context(unittest.mock.patch.object(child, "forward", _named(child.forward, part)))
        if name == "maco":  # which runs parts of the image encoder, not its forward
            module = importlib.import_module("medvlp_baselines.maco.module")
            for function in ("patch_tokens", "encode_patches"):
                timed = _named(getattr(module, function), "image_encoder")
                stack.enter_context(unittest.mock.patch.object(module, function, timed))
        for function, part in (("contrast", "contrast"), ("losses", _REST)):
            timed = _named(getattr(model, function), part)
            stack.enter_context(unittest.mock.patch.object(model, function, timed))
        for path, function in LOSSES.get(name, []):
            module = importlib.import_module(path)
            timed = _named(getattr(module, function), function)
            stack.enter_context(unittest.mock.patch.object(module, function, timed))
        yield


def _part_of(event: Any) -> str | None:
    while event is not None:
        if event.name.startswith(_PREFIX):
            return event.name.removeprefix(_PREFIX)
        event = event.cpu_parent
    return None


def attribute(events: Any, cuda: bool) -> dict[str, float]:
    """Milliseconds of each part, forward and backward, from a profile of one step.

    On a CPU wall time; on a GPU the time of the kernels that an operation launched.
    """

    def spent(event: Any) -> float:
        return (event.device_time_total if cuda else event.cpu_time_total) / 1000

    backward = "autograd::engine::evaluate_function: "
    found: dict[str, float] = defaultdict(float)
    owner: dict[int, str] = {}
    for event in events:
        if event.name.startswith(backward):
            continue
        part = _part_of(event)
        if part and event.sequence_nr >= 0 and not event.is_legacy:
            owner.setdefault(event.sequence_nr, part)
        if event.name.startswith(_PREFIX):
            found[part or ""] += spent(event)
            outer = _part_of(event.cpu_parent)  # a part within a part counts for itself alone
            if outer:
                found[outer] -= spent(event)
    for event in events:
        if event.name.startswith(backward) and _part_of(event) is None:
            found[owner.get(event.sequence_nr, "gradients added up")] += spent(event)
    return found


def terms(run: Run, repeats: int) -> dict[str, float]:
    """Median milliseconds of each part of a step."""
    cuda = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    rows: list[dict[str, float]] = []
    with parts_named(run.model, run.name):
        for _ in range(repeats):
            synchronise(run.device)
            with profile(activities=activities, acc_events=True) as record:
                run.step()
                synchronise(run.device)
            rows.append(attribute(record.events(), cuda))
    names = {name for row in rows for name in row}
    medians = {name: statistics.median(row.get(name, 0.0) for row in rows) for name in names}
    return dict(sorted(((k, round(v, 3)) for k, v in medians.items()), key=lambda item: -item[1]))


# ---------------------------------------------------------------- measuring and showing


def measure(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All figures of one method."""
    run = Run(name, args, device)
    medians, busy = alternate(run.sides(), args.repeats, device)
    result: dict[str, Any] = {
        "ratio": round(medians["bare"] / medians["step"], 4),
        "samples_per_second": round(args.batch / medians["step"], 3),
        "bare_samples_per_second": round(args.batch / medians["bare"], 3),
        "tokens": tokens(name, args),
        **{f"{side}_ms": round(1000 * value, 2) for side, value in medians.items()},
    }
    if device.type == "cpu":
        result["cpu_ratio"] = round(busy["bare"] / max(busy["step"], 1e-9), 4)
    if "bare_whole" in medians:
        result["ratio_whole"] = round(medians["bare_whole"] / medians["step"], 4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run.step()
        result["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    result["terms_ms"] = terms(run, args.profiles)
    total = sum(result["terms_ms"].values())
    result["terms_share"] = {part: round(spent / total, 4) for part, spent in result["terms_ms"].items()}
    return result


def device_name(device: torch.device) -> str:
    """The GPU's or CPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(results: dict[str, dict[str, Any]], title: str) -> None:
    """Two tables for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=title)
    for column in ("method", "pieces", "bare ms", "step ms", "samples/s", "fraction of bare", "by CPU time"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, found in results.items():
        whole = f" ({found['ratio_whole']:.3f} of whole images)" if "ratio_whole" in found else ""
        cells = [f"{found[key]:.0f}" for key in ("bare_ms", "step_ms")]
        rate = f"{found['samples_per_second']:.2f}"
        table.add_row(
            name,
            str(found["tokens"]),
            *cells,
            rate,
            f"{found['ratio']:.3f}{whole}",
            f"{found['cpu_ratio']:.3f}" if "cpu_ratio" in found else "/",
        )
    console.print(table)
    parts = Table(title="Where a step's time goes (profiled, forward and backward)")
    for column in ("method", "part", "ms", "share"):
        parts.add_column(column, justify="left" if column in ("method", "part") else "right")
    for name, found in results.items():
        for i, (part, spent) in enumerate(found["terms_ms"].items()):
            parts.add_row("" if i else name, part, f"{spent:.1f}", f"{100 * found['terms_share'][part]:.1f} %")
    console.print(parts)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints tables, then one line of JSON."""
    known = [entry.name for entry in registry.methods() if entry.name not in ("random", "imagenet")]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--tokens", type=int, default=0, help="word pieces of the longest report; 0: the method's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profiles", type=int, default=2, help="profiled steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="bf16: autocast, on both sides")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.size, args.tokens, args.repeats, args.profiles = 4, 64, 12, 1, 1
    torch.set_num_threads(args.threads)
    # What Lightning says of logging without a trainer.
    warnings.filterwarnings("ignore", message=".*self.trainer.*")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    device = torch.device(chosen)
    results = {name: measure(name, args, device) for name in args.methods}
    show(
        results,
        f"Training steps of {args.batch} pairs, {device_name(device)}, {args.threads} CPU thread(s), "
        f"medians of {args.repeats}",
    )
    main_methods = [name for name in ("convirt", "g2d") if name in results] or list(results)
    figures = {
        "benchmark": "training step",
        "ratio": min(results[name]["ratio"] for name in main_methods),
        "ratio_of": main_methods,
        "device": device_name(device),
        "threads": args.threads,
        "settings": {key: getattr(args, key) for key in ("batch", "size", "tokens", "precision", "repeats")},
        "results": results,
        "versions": {"medvlp": version("medvlp"), "python": platform.python_version(), "torch": version("torch")},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
