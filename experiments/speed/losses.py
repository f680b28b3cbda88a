"""Times GLoRIA's and MGCA's token losses and the merging of word pieces against the loops they replace.

- gloria_local: against the loop over reports: each report is repeated for all images, and a (batch, channels, words)
  tensor of contexts is formed each turn.
- mgca_tokens: against a loop over samples with ``torch.quantile`` for each.
- word_pieces: against a loop over tokens that reads each group from the device.

Forward and backward, run alternately on the same inputs, so that a busy machine slows both. Peak memory is what a step
adds to the inputs: the growth of the resident set in a process of its own on a CPU (Linux), the allocator's peak on a
GPU. A loop that would need more than ``--limit-gb`` is skipped, judged by the square of the batch from the last that
ran. ``cpu_ratio`` compares the processor time of the process instead of the clock: what others run on the same cores
hardly moves it.

    python experiments/speed/losses.py                          # batches of 16, 48 and 128
    python experiments/speed/losses.py --matmul high            # TensorFloat-32 on a GPU, for both sides
    python experiments/speed/losses.py --quick                  # seconds

The last line is one JSON object with every figure; its ``ratio`` is gloria_local's at a batch of 48, its
``memory_ratio`` that at the largest batch whose loop was run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from medvlp_baselines.gloria.losses import local_loss, two_way_cross_entropy, word_features
from medvlp_baselines.mgca.losses import token_loss
from torch import Tensor

Leaves = list[Tensor]
Case = tuple[Callable[[], Tensor], Callable[[], Tensor], Leaves]


def gloria_loop(regions: Tensor, words: Tensor, lengths: list[int]) -> Tensor:
    """Both directions, one report after the other, with the paper's (4, 5, 10)."""
    columns = []
    for report, length in zip(words, lengths, strict=True):
        query = report[:length].T[None].repeat(len(regions), 1, 1)
        flat = regions.flatten(2)
        weights = torch.bmm(flat.transpose(1, 2).contiguous(), query).softmax(2)
        weights = (4 * weights.transpose(1, 2).contiguous()).softmax(2)
        context = torch.bmm(flat, weights.transpose(1, 2).contiguous())
        cosine = F.cosine_similarity(query, context, dim=1)
        columns.append((5 * cosine).exp().sum(1, keepdim=True).log())
    rows, cols = two_way_cross_entropy(10 * torch.cat(columns, 1))
    return rows + cols


def gloria_local(args: argparse.Namespace, batch: int, device: torch.device) -> Case:
    """Reports of ``--words`` words, or of ``--shortest`` to ``--words``."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randn(batch, args.channels, args.side, args.side, generator=generator).to(device).requires_grad_()
    words = (0.3 * torch.randn(batch, args.words, args.channels, generator=generator)).to(device).requires_grad_()
    shortest = min(args.shortest or args.words, args.words)
    lengths = torch.randint(shortest, args.words + 1, (batch,), generator=generator)
    mask = torch.arange(args.words) < lengths[:, None]  # on the CPU: both sides know the lengths without waiting
    kept = lengths.tolist()
    return lambda: local_loss(regions, words, mask), lambda: gloria_loop(regions, words, kept), [regions, words]


def _clipped(weights: Tensor) -> Tensor:
    there = weights[weights != 0]
    clipped = there.clamp(torch.quantile(there, 0.1), torch.quantile(there, 0.9))
    return torch.zeros_like(weights).masked_scatter(weights != 0, clipped / clipped.sum())


def mgca_loop(patches: Tensor, words: Tensor, attention: Tensor, padding: Tensor) -> Tensor:
    """The released code's token alignment (ResNet), one sample after the other."""
    total = patches.new_zeros(())
    for sample in range(len(patches)):
        r, z = F.normalize(patches[sample], dim=1), F.normalize(words[sample], dim=1)
        target_r, target_z = (torch.arange(len(t), device=t.device) for t in (r, z))
        u = F.normalize((r @ z.T / 0.1).masked_fill(padding[sample], -torch.inf).softmax(1) @ z, dim=1)
        o = F.normalize((z @ r.T / 0.1).softmax(1) @ r, dim=1)
        weights = _clipped(attention[sample])
        patch, word = r @ u.T / 0.1, z @ o.T / 0.1
        for scores in (patch, patch.T):
            total = total + F.cross_entropy(scores, target_r) / 2
        for scores in (word, word.T):
            total = total + (weights * F.cross_entropy(scores, target_z, reduction="none")).sum() / 2
    return total / len(patches)


def mgca_tokens(args: argparse.Namespace, batch: int, device: torch.device) -> Case:
    """361 patches, 111 words, 128 dimensions at the default ``--side``."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(batch, args.side**2, 128, generator=generator).to(device).requires_grad_()
    words = torch.randn(batch, 111, 128, generator=generator).to(device).requires_grad_()
    lengths = torch.randint(10, 100, (batch, 1), generator=generator)
    padding = (torch.arange(111) >= lengths).to(device)
    attention = torch.rand(batch, 111, generator=generator).to(device).masked_fill(padding, 0)

    def batched() -> Tensor:
        sides = token_loss(patches, words, attention, padding, variant="official")
        return sides.patch + sides.word

    return batched, lambda: mgca_loop(patches, words, attention, padding), [patches, words]


def pieces_loop(hidden: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
    """Words of GLoRIA's four layers, token by token."""
    layers, batch, length, dim = hidden.shape
    texts = []
    for b in range(batch):
        rows: list[Tensor] = []
        previous = -1
        for position in range(length):
            if not mask[b, position].item():
                break
            group = int(groups[b, position].item())
            if rows and group >= 0 and group == previous:
                rows[-1] = rows[-1] + hidden[:, b, position]
            else:
                rows.append(hidden[:, b, position])
            previous = group
        rows += [hidden.new_zeros(layers, dim)] * (length - len(rows))
        texts.append(torch.stack(rows, 1))
    return torch.stack(texts, 1).sum(0)


def word_pieces(args: argparse.Namespace, batch: int, device: torch.device) -> Case:
    """97 pieces, four layers; a word has 1.5 pieces on average."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, batch, 97, args.channels, generator=generator).to(device).requires_grad_()
    lengths = torch.randint(20, 98, (batch, 1), generator=generator)
    groups = (torch.rand(batch, 97, generator=generator) < 2 / 3).long().cumsum(1)
    position = torch.arange(97)
    groups = groups.masked_fill((position == 0) | (position >= lengths - 1), -1).to(device)
    mask = (position < lengths).long().to(device)
    return (
        lambda: word_features(hidden, groups, mask).words.square().sum(),
        lambda: pieces_loop(hidden, groups, mask).square().sum(),
        [hidden],
    )


CASES: dict[str, Callable[[argparse.Namespace, int, torch.device], Case]] = {
    "gloria_local": gloria_local,
    "mgca_tokens": mgca_tokens,
    "word_pieces": word_pieces,
}
WAYS = ("batched", "loop")


def timed(function: Callable[[], Tensor], leaves: Leaves) -> tuple[float, float, float]:
    """Seconds of one forward and backward pass, with the device's queue empty before and after; of the processor; loss.

    The processor's are those of all threads.
    """
    cuda = leaves[0].is_cuda
    for leaf in leaves:
        leaf.grad = None
    if cuda:
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    loss = function()
    loss.backward()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy, float(loss.detach())


def high_water() -> float:
    """Largest resident set of this process so far, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def peak_here(args: argparse.Namespace, name: str, way: str, batch: int, device: torch.device) -> float:
    """MiB that one step adds to the inputs in this process."""
    *functions, leaves = CASES[name](args, batch, device)
    function = functions[WAYS.index(way)]  # type: ignore[index]
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed(function, leaves)  # type: ignore[arg-type]
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    torch.ones(8, 8, requires_grad=True).square().sum().backward()  # the engine's own threads and buffers
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from what is resident now
    before = high_water()
    timed(function, leaves)  # type: ignore[arg-type]
    return high_water() - before


def peak(args: argparse.Namespace, name: str, way: str, batch: int, device: torch.device) -> float:
    """The same, on a CPU in a process of its own, whose peak starts from its inputs."""
    if device.type == "cuda":
        return peak_here(args, name, way, batch, device)
    command = [sys.executable, str(Path(__file__)), "--memory-of", f"{name}:{way}:{batch}", "--device", "cpu"]
    for option in ("channels", "side", "words", "shortest", "threads", "matmul"):
        command += [f"--{option}", str(getattr(args, option))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace, name: str, batch: int, device: torch.device, with_loop: bool) -> dict:
    """Times and peaks of one case at one batch size."""
    ways = WAYS if with_loop else WAYS[:1]
    result: dict = {f"{way}_peak_mib": round(peak(args, name, way, batch, device), 1) for way in ways}
    *functions, leaves = CASES[name](args, batch, device)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, float] = {}
    for turn in range(args.repeats + 1):  # the first turn warms up
        for way, function in zip(ways, functions, strict=False):
            spent, busy, losses[way] = timed(function, leaves)  # type: ignore[arg-type]
            if turn:
                seconds[way].append(spent)
                processor[way].append(busy)
    for way in ways:
        result[f"{way}_ms"] = round(1000 * statistics.median(seconds[way]), 3)
        result[f"{way}_cpu_ms"] = round(1000 * statistics.median(processor[way]), 3)
    if with_loop:
        result["ratio"] = round(statistics.median(seconds["loop"]) / statistics.median(seconds["batched"]), 3)
        if device.type == "cpu":
            busy = {way: statistics.median(values) for way, values in processor.items()}
            result["cpu_ratio"] = round(busy["loop"] / max(busy["batched"], 1e-9), 3)
        result["memory_ratio"] = round(result["batched_peak_mib"] / max(result["loop_peak_mib"], 1e-3), 4)
        result["difference"] = abs(losses["loop"] - losses["batched"]) / abs(losses["loop"])
    return result


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, dict[str, dict]]:
    """All cases at all batch sizes."""
    results: dict[str, dict[str, dict]] = {}
    for name in args.cases:
        per_square = 0.0
        for batch in sorted(args.batches):
            fits = per_square * batch**2 <= args.limit_gb * 1024
            found = compare(args, name, batch, device, fits)
            if "loop_peak_mib" in found:
                per_square = found["loop_peak_mib"] / batch**2
            results.setdefault(name, {})[str(batch)] = found
    return results


def device_name(device: torch.device) -> str:
    """The GPU's or CPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(results: dict[str, dict[str, dict]], title: str) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("", "batch", "batched ms", "loop ms", "times", "batched MiB", "loop MiB"):
        table.add_column(column, justify="right" if column else "left")
    for name, batches in results.items():
        for batch, found in batches.items():
            cells = [found.get(key) for key in ("batched_ms", "loop_ms", "ratio", "batched_peak_mib", "loop_peak_mib")]
            table.add_row(name, batch, *["/" if cell is None else f"{cell:.2f}" for cell in cells])
    Console().print(table)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 48, 128])
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--side", type=int, default=19, help="side of the region grid")
    parser.add_argument("--words", type=int, default=40, help="words of the longest report")
    parser.add_argument("--shortest", type=int, default=0, help="words of the shortest report; 0: all equally long")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--matmul", choices=["highest", "high", "medium"], default="highest", help="float32 products")
    parser.add_argument("--limit-gb", type=float, default=20, help="largest loop to run")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.batches, args.channels, args.side, args.words, args.repeats = [4], 32, 5, 8, 1
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    device = torch.device(name)
    if args.memory_of:
        case, way, batch = args.memory_of.split(":")
        print(peak_here(args, case, way, int(batch), device))
        return
    results = measure(args, device)
    title = f"Forward and backward, {device_name(device)}, {args.threads} CPU thread(s), medians of {args.repeats}"
    show(results, title)
    first = results[args.cases[0]]
    both = {int(batch): found for batch, found in first.items() if "ratio" in found}
    nearest = min(both, key=lambda batch: abs(batch - 48))
    figures = {
        "benchmark": f"losses: {args.cases[0]}",
        "ratio": both[nearest]["ratio"],
        "ratio_batch": nearest,
        "memory_ratio": both[max(both)]["memory_ratio"],
        "memory_batch": max(both),
        "device": device_name(device),
        "threads": args.threads,
        "matmul": args.matmul,
        "sizes": {key: getattr(args, key) for key in ("channels", "side", "words", "shortest", "repeats")},
        "results": results,
        "versions": {"medvlp": version("medvlp"), "python": platform.python_version(), "torch": version("torch")},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
