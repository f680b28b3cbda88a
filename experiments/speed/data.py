"""Times the loading of training images from prepared pixels against decoding the released files in every epoch.

Two common ways are the comparison: Pillow (decode in full, convert to RGB, resize to 256 × 256) and OpenCV (decode as
grey, longer side to 256 with INTER_AREA, pad, as MGCA and GLoRIA do), each followed by a random crop of 224 and the
normalisation. Files are JPEGs of 3056 × 2544 pixels at quality 95 of about 2.5 MB, as MIMIC-CXR-JPG holds them, and
PNGs of 1024 × 1024, as ChestX-ray14 does: drawn by the phantom, enlarged, with noise. All go through a DataLoader
without worker processes, with one thread, transform and collate included, in turns.

Then the memory of a loader over 10,000 prepared images and their texts is read after each of three epochs, with 1, 2
and 4 workers: resident (RSS), proportional (PSS: shared pages divided by those who share them, other programs
included) and private (USS).

    python experiments/speed/data.py
    python experiments/speed/data.py --images 4 --memory-items 0     # a quick look

The last line is one JSON object with every figure.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from medvlp.datasets.base import Dropped, RadiographDataset, make_table
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.io.cache import PixelCache
from medvlp.phantom import PhantomSpec
from medvlp.phantom.cases import sample_study
from medvlp.phantom.render import render_view
from medvlp.prepare import prepare
from medvlp.text import Collate, train_wordpiece
from medvlp.transforms import build_transform

PACKAGES = ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy", "pyarrow")
SIZE = 224
STORED = 256
WORDS = ("no", "focal", "consolidation", "pleural", "effusion", "or", "pneumothorax", "lungs", "are", "clear", "heart")


class Files(Corpus):
    """All images in a folder, each with a made-up report."""

    name = "files"
    title = "image files"
    source = "this script"
    tasks = ("pairs",)
    tables = ()

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Every file."""
        paths = sorted(p for p in self.root.iterdir() if p.suffix in (".jpg", ".png"))
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(WORDS, 60)) for _ in paths]
        table = make_table({"id": [p.stem for p in paths], "image": paths, "text": texts})
        return Records(table, Dropped().frame())


def write_images(folder: Path, count: int, height: int, width: int, kind: str, noise: float) -> float:
    """Write phantoms in the size of released files; returns their mean size in megabytes."""
    folder.mkdir(parents=True)
    spec = PhantomSpec(studies=max(count, 10), size=512, laterals=0.0)
    rng = np.random.default_rng(0)
    for i in range(count):
        study = sample_study(spec, i)
        drawn = render_view(study, study.views[0], spec.size, spec.difficulty).image
        large = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        large += noise * rng.standard_normal(large.shape, dtype=np.float32)
        picture = Image.fromarray(large.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{i:05d}.{kind}", quality=95)  # PNG has no quality
    return sum(p.stat().st_size for p in folder.iterdir()) / count / 1e6


class CommonWay(Dataset):
    """What published training code does for each image in each epoch."""

    def __init__(self, paths: Sequence[str], load: Callable[[str], Image.Image]) -> None:
        self.paths = paths
        self.load = load
        self.transform = T.Compose([T.RandomCrop(SIZE), T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.load(self.paths[index]))


def with_pillow(path: str) -> Image.Image:
    """Decode in full, convert to RGB, resize."""
    return Image.open(path).convert("RGB").resize((STORED, STORED), Image.Resampling.BILINEAR)


def with_opencv(path: str) -> Image.Image:
    """Decode as grey, longer side to 256 by area averaging, pad with zeros."""
    image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    assert image is not None
    height, width = (int(side * STORED / max(image.shape)) for side in image.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    down, right = STORED - height, STORED - width
    padded = np.pad(small, ((down // 2, down - down // 2), (right // 2, right - right // 2)))
    return Image.fromarray(padded).convert("RGB")


def loader(dataset: Dataset, collate: Any = None, **options: Any) -> DataLoader:
    """Batches of 32 in random order."""
    return DataLoader(dataset, batch_size=32, shuffle=True, collate_fn=collate, **options)


def milliseconds(batches: DataLoader, passes: int) -> float:
    """Per image, over a number of epochs."""
    start = time.perf_counter()
    for _ in range(passes):
        for _batch in batches:
            pass
    return 1000 * (time.perf_counter() - start) / (passes * len(batches.dataset))  # type: ignore[arg-type]


def prepared(corpus: Corpus, out: Path, transform: str) -> tuple[RadiographDataset, RadiographDataset]:
    """The same training set from the files and from prepared pixels."""
    recipe = build_transform(transform, SIZE, True)
    prepare(corpus, out, resize=recipe.resize.name, workers=1)
    plain = RadiographDataset(corpus.records().table, transform=recipe)
    cache = PixelCache.open(out, corpus.name, "standard", recipe.resize.name, corpus.root)
    return plain, plain.with_cache(cache)


def throughput(folder: Path, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per image of each way, and the ratios to the cache."""
    released = (3056, 2544) if kind == "jpg" else (1024, 1024)
    shape = tuple(round(args.scale * side) for side in released)
    megabytes = write_images(folder / kind, args.images, shape[0], shape[1], kind, args.noise)
    corpus = Files(folder / kind)
    plain, cached = prepared(corpus, folder / "cache", "mgca")
    assert torch.equal(plain[0]["image"], cached[0]["image"])
    paths = plain.table.column("image").to_pylist()
    collate = Collate(None)
    ways = {
        "pillow": (loader(CommonWay(paths, with_pillow)), 1),
        "opencv": (loader(CommonWay(paths, with_opencv)), 1),
        "medvlp_files": (loader(plain, collate), 1),
        "medvlp_cache": (loader(cached, collate), args.passes),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, (batches, passes) in ways.items():
            spent = milliseconds(batches, passes)
            if turn:  # the first turn warms up
                times[name].append(spent)
    result: dict[str, Any] = {"file_mb": round(megabytes, 3), "shape": shape}
    for name, values in times.items():
        result[name] = {
            "min_ms": round(min(values), 4),
            "median_ms": round(statistics.median(values), 4),
            "max_ms": round(max(values), 4),
            "images_per_s": round(1000 / statistics.median(values), 1),
        }
    cache_ms = statistics.median(times["medvlp_cache"])
    result["ratio"] = {n: round(statistics.median(v) / cache_ms, 2) for n, v in times.items() if n != "medvlp_cache"}
    result["cache_ms_by_transform"] = {
        name: round(milliseconds(loader(prepared(corpus, folder / "cache", name)[1], collate), args.passes), 4)
        for name in args.transforms
    }
    return result


def memory_of(pid: int) -> dict[str, float]:
    """RSS, PSS and USS of a process in megabytes."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        found[name] = int(value.split()[0]) / 1024
    private = found["Private_Clean"] + found["Private_Dirty"]
    return {"rss": found["Rss"], "pss": found["Pss"], "uss": private}


def _memory(folder: Path, workers: int, epochs: int, queue: Any) -> None:
    torch.set_num_threads(1)
    corpus = Files(folder / "many")
    table = corpus.records().table
    recipe = build_transform("mgca", SIZE, True)
    cache = PixelCache.open(folder / "cache", "files", "standard", recipe.resize.name, corpus.root)
    cached = RadiographDataset(table, transform=recipe).with_cache(cache)
    texts = cached.texts
    tokenizer = train_wordpiece(texts, 200)
    del texts
    batches = loader(
        cached,
        Collate(tokenizer, 128),
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",  # as a training script's; this process itself was started afresh
    )
    rows = []
    for epoch in range(epochs):
        seen = sum(len(batch["id"]) for batch in batches)
        assert seen == len(cached)
        pids = [process.pid for process in batches._iterator._workers]  # type: ignore[union-attr]
        each = [memory_of(pid) for pid in (os.getpid(), *pids)]
        total = {f"{name}_mb": round(sum(m[name] for m in each), 1) for name in ("rss", "pss", "uss")}
        rows.append({"workers": workers, "epoch": epoch + 1, **total, "worker_uss_mb": round(each[-1]["uss"], 1)})
    queue.put(rows)


def memory(folder: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """Memory of main process and workers after each epoch, each number of workers in a fresh process."""
    small = folder / "few"
    write_images(small, 20, 128, 128, "png", args.noise)
    many = folder / "many"
    many.mkdir()
    for i in range(args.memory_items):
        os.link(small / f"{i % 20:05d}.png", many / f"{i:05d}.png")
    prepared(Files(many), folder / "cache", "mgca")
    context = multiprocessing.get_context("spawn")
    rows = []
    for workers in args.workers:
        queue = context.Queue()
        process = context.Process(target=_memory, args=(folder, workers, args.epochs, queue))
        process.start()
        rows += queue.get(timeout=1800)
        process.join()
    return rows


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(results: dict[str, dict[str, Any]], rows: list[dict[str, float]]) -> None:
    """Tables for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    names = {
        "pillow": "Pillow, RGB, every epoch",
        "opencv": "OpenCV, grey, every epoch",
        "medvlp_files": "medvlp from the files",
        "medvlp_cache": "medvlp from prepared pixels",
    }
    for kind, result in results.items():
        height, width = result["shape"]
        title = f"{kind.upper()} of {height} × {width}, {result['file_mb']:.2f} MB; {processor()}, 1 thread"
        table = Table(title=title)
        for column in ("", "median ms", "images / s", "× the cache's time"):
            table.add_column(column, justify="right" if column else "left")
        for name, label in names.items():
            figures = result[name]
            ratio = result["ratio"].get(name, 1.0)
            table.add_row(label, f"{figures['median_ms']:.3f}", f"{figures['images_per_s']:.0f}", f"{ratio:.1f}")
        console.print(table)
        console.print("ms per image with other training transforms:", result["cache_ms_by_transform"])
    if rows:
        table = Table(title="Memory of main process and workers, MB")
        for key in rows[0]:
            table.add_column(key, justify="right")
        for row in rows:
            table.add_row(*[str(value) for value in row.values()])
        console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="files of each kind")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the sides of the files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--passes", type=int, default=40, help="epochs over the prepared pixels in each turn")
    parser.add_argument(
        "--noise", type=float, default=3.5, help="standard deviation in grey levels; sets the file size"
    )
    parser.add_argument("--transforms", nargs="*", default=["plain", "phantom", "g2d_paper", "convirt"])
    parser.add_argument("--memory-items", type=int, default=10_000, help="0 leaves the memory out")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, help="where the files go; the default is removed again")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        results = {kind: throughput(folder, kind, args) for kind in ("jpg", "png")}
        linux = Path("/proc/self/smaps_rollup").is_file()
        rows = memory(folder, args) if args.memory_items and linux else []
    show(results, rows)
    growth = {}
    for workers in args.workers if rows else ():
        mine = [row for row in rows if row["workers"] == workers]
        growth[str(workers)] = {k: round(mine[-1][k] - mine[0][k], 1) for k in ("rss_mb", "pss_mb", "uss_mb")}
    figures = {
        "benchmark": "image loading",
        "ratio": results["jpg"]["ratio"]["pillow"],
        "ratios": {kind: result["ratio"] for kind, result in results.items()},
        "growth_from_first_epoch": growth,
        "device": processor(),
        "threads": 1,
        "transform": "mgca",
        "results": results,
        "memory": rows,
        "versions": {"medvlp": version("medvlp"), "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
