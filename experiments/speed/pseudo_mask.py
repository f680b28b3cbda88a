"""Times G2D's pseudo masks: batched in torch, as medvlp makes them, against a loop over images on the host.

The loop is what one writes with numpy, OpenCV and SciPy's habits: per image the mean over heads, nearest up-sampling,
Otsu, the body mask, a quantile of the up-sampled map inside the body, the threshold, OpenCV's bilateral filter. Both
run alternately in one process, so that a busy machine slows both. On a GPU the loop's time includes its copies to the
host and back, which a loop there cannot avoid.

    python experiments/speed/pseudo_mask.py                    # batch 128 at 224 px, as in the paper
    python experiments/speed/pseudo_mask.py --step             # and the share of a training step

The last line is one JSON object with every figure.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from medvlp.methods.g2d.module import G2D
from medvlp.methods.g2d.pseudo_mask import PseudoMaskSettings, pseudo_mask

SETTINGS = PseudoMaskSettings()
PACKAGES = ("torch", "kornia", "numpy", "opencv-python-headless")


def example(batch: int, size: int, heads: int, grid: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random attention (B, H, g, g) and drawn chests (B, 3, S, S) in [0, 1] of 256 levels."""
    generator = torch.Generator().manual_seed(seed)
    attention = torch.randn(batch, heads, grid * grid, generator=generator).softmax(-1).view(batch, heads, grid, grid)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    body = ((x - 0.5).abs() < 0.42 - 0.1 * (0.4 - y).clamp_min(0)) & (y > 0.06)
    lungs = (((x - 0.31) / 0.14) ** 2 + ((y - 0.5) / 0.32) ** 2 < 1) | (
        ((x - 0.69) / 0.14) ** 2 + ((y - 0.5) / 0.32) ** 2 < 1
    )
    level = torch.where(lungs, 0.25, torch.where(body, 0.7, 0.05))
    shift = 0.1 * torch.randn(batch, 1, 1, generator=generator)
    noisy = (level * (1 + shift) + 0.03 * torch.randn(batch, size, size, generator=generator)).clamp(0, 1)
    gray = (noisy * 255).round() / 255
    return attention, gray[:, None].expand(-1, 3, -1, -1).contiguous()


def one_by_one(attention: np.ndarray, images: np.ndarray, smooth: bool = True) -> np.ndarray:
    """The same pipeline for one image after the other: (B, H, g, g) and (B, 3, S, S) → (B, S, S) float32."""
    size = images.shape[-1]
    kernel = max(3, round(SETTINGS.kernel * size) // 2 * 2 + 1)
    sigma = max(SETTINGS.sigma_space * size, 0.5)
    masks = []
    for heads, image in zip(attention, images, strict=True):
        index = np.arange(size) * heads.shape[-1] // size
        cells = heads.mean(0)
        upsampled = cells[index[:, None], index]
        gray = image.mean(0)
        low, high = gray.min(), gray.max()
        levels = ((gray - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
        _, bright = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        body = np.ones_like(bright, dtype=bool)
        for axis in (0, 1):
            before = np.maximum.accumulate(bright, axis) > 0
            after = np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis) > 0
            body &= before & after
        threshold = np.quantile(upsampled[body], SETTINGS.threshold)
        mask = ((upsampled >= threshold) & body).astype(np.float32)
        masks.append(cv2.bilateralFilter(mask, kernel, SETTINGS.sigma_color, sigma) if smooth else mask)
    return np.stack(masks)


def through_host(attention: Tensor, images: Tensor) -> Tensor:
    """The loop where a training step would call it: to the host, and back to the device."""
    masks = one_by_one(attention.detach().cpu().numpy(), images.cpu().numpy())
    return torch.from_numpy(masks)[:, None].to(images.device)


def batched(attention: Tensor, images: Tensor) -> Tensor:
    """As medvlp makes them."""
    return pseudo_mask(attention, images, SETTINGS).mask


def compare(attention: Tensor, images: Tensor) -> dict[str, float]:
    """How far the two agree: share of pixels that differ before the filter, and the mean difference after it."""
    hard = pseudo_mask(attention, images, PseudoMaskSettings(smooth=False)).mask[:, 0].cpu().numpy()
    host = one_by_one(attention.cpu().numpy(), images.cpu().numpy(), smooth=False)
    after = np.abs(batched(attention, images)[:, 0].cpu().numpy() - through_host(attention, images)[:, 0].cpu().numpy())
    return {"differing_before_filter": float((hard != host).mean()), "mean_difference_after": float(after.mean())}


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: least, median, most."""
    return {
        "min_ms": round(1000 * min(seconds), 3),
        "median_ms": round(1000 * statistics.median(seconds), 3),
        "max_ms": round(1000 * max(seconds), 3),
    }


def alternate(functions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function, taken in turns; the first turn warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            spent = timed(function, device)
            if turn:
                seconds[name].append(spent)
    return seconds


def training_step(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """One step of the paper's model, forward and backward, and the pseudo masks of the same batch in it."""
    torch.manual_seed(0)
    model = G2D(
        image={"name": args.image},  # type: ignore[arg-type]
        text={  # type: ignore[arg-type]
            "hidden_size": args.text_width,
            "num_layers": args.text_layers,
            "num_heads": 12,
            "vocab_size": 28996,
            "max_length": args.tokens,
        },
        image_size=args.size,
        prompts=None,
    )
    model.to(device).train()
    _, images = example(args.step_batch, args.size, 3, 7)
    ids = torch.randint(5, 28996, (args.step_batch, args.tokens))
    batch = {"image": images.to(device), "input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}

    def step() -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = model.losses(batch)
        torch.stack([term.float() for term in terms.values()]).sum().backward()

    with torch.no_grad():
        attention = model(batch)["attention"].detach()
    masks: Callable[[], object] = lambda: model.pseudo_masks(batch["image"], attention)  # noqa: E731
    seconds = alternate({"step": step, "mask": masks}, args.step_repeats, device)
    step_s, mask_s = (statistics.median(seconds[name]) for name in ("step", "mask"))
    return {
        "step_batch": args.step_batch,
        "step_ms": round(1000 * step_s, 3),
        "mask_in_step_ms": round(1000 * mask_s, 3),
        "share_of_step": round(mask_s / step_s, 5),
    }


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(args: argparse.Namespace, device: torch.device) -> dict:
    """All figures of one device."""
    attention, images = (t.to(device) for t in example(args.batch, args.size, args.heads, args.grid))
    result: dict = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "batch": args.batch,
        "size": args.size,
        "repeats": args.repeats,
        **compare(attention, images),
    }
    functions = {"batched": lambda: batched(attention, images), "loop": lambda: through_host(attention, images)}
    seconds = alternate(functions, args.repeats, device)
    result.update({name: summary(values) for name, values in seconds.items()})
    result["ratio"] = round(statistics.median(seconds["loop"]) / statistics.median(seconds["batched"]), 3)
    result["share_of_step"] = None
    if args.step:
        result.update(training_step(args, device))
    return result


def show(result: dict) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    title = f"Pseudo masks, {result['batch']} images of {result['size']} px, {result['device']}, "
    table = Table(title=title + f"{result['threads']} CPU thread(s), {result['repeats']} runs")
    for column in ("", "min ms", "median ms", "max ms"):
        table.add_column(column, justify="right" if column else "left")
    for name, title in (("batched", "medvlp, batched"), ("loop", "loop over images, NumPy and OpenCV")):
        table.add_row(title, *[f"{result[name][key]:.2f}" for key in ("min_ms", "median_ms", "max_ms")])
    console = Console()
    console.print(table)
    console.print(f"the loop takes {result['ratio']:.2f} times as long (ratio of medians)")
    console.print(f"pixels that differ before the filter: {100 * result['differing_before_filter']:.4f} %")
    if result["share_of_step"] is not None:
        console.print(
            f"share of a training step of {result['step_batch']} pairs: {100 * result['share_of_step']:.2f} % "
            f"({result['mask_in_step_ms']:.1f} of {result['step_ms']:.1f} ms)"
        )


def main(argv: list[str] | None = None) -> None:
    """Measures, prints tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--grid", type=int, default=7, help="side of the attention map in cells")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of torch and OpenCV")
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "all"], default="all", help="all: the CPU, and a GPU if any"
    )
    parser.add_argument("--step", action="store_true", help="measure a training step as well")
    parser.add_argument("--step-batch", type=int, default=8)
    parser.add_argument("--step-repeats", type=int, default=3)
    parser.add_argument("--image", default="resnet50", help="image encoder of the step")
    parser.add_argument("--text-width", type=int, default=768)
    parser.add_argument("--text-layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128, help="length of the reports in the step")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    names = (
        ["cpu", "cuda"] if args.device == "all" and torch.cuda.is_available() else [args.device.replace("all", "cpu")]
    )
    results = {name: measure(args, torch.device(name)) for name in names}
    for result in results.values():
        show(result)
    first = results[names[0]]
    figures = {
        "benchmark": "g2d pseudo mask",
        **{key: first[key] for key in ("ratio", "share_of_step", "device")},
        "results": results,
        "versions": {"medvlp": version("medvlp"), "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
