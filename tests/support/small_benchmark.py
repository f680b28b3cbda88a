"""A small benchmark as its runner leaves it: result rows, grid.json, and pictures."""

import json
from pathlib import Path

import numpy as np

from medvlp.results import ResultRow

METHODS = {"random": "Random", "convirt": "ConVIRT", "mgca": "MGCA", "g2d": "G2D", "g2d_decoder": "G2D, decoder <b>"}
CLASSES = ("Atelectasis", "Cardiomegaly", "Pleural_Effusion")
RUNS = ("run0", "run1", "run2")
TASKS = {
    "linear_chexpert": ("classification", "linear", "chexpert", "auroc", (0.01, 0.1, 1.0)),
    "seg_siim": ("segmentation", "frozen", "siim", "dice_positive", (0.01, 0.1, 1.0)),
    "detect_rsna": ("detection", "honest", "rsna", "map_coco", (1.0,)),
    "zero_rsna": ("zero_shot", "default", "rsna", "auroc", (None,)),
    "ground_rsna": ("grounding", "default", "rsna", "iou", (None,)),
}
SHARES = {0.01: 0.0, 0.1: 0.08, 1.0: 0.16, None: 0.05}


def value_of(method: str, task: str, fraction: float | None, run: str, shift: float = 0.0) -> float:
    """A score that depends on everything, in (0, 1)."""
    level = 0.3 + 0.05 * list(METHODS).index(method) + 0.06 * list(TASKS).index(task)
    return level + SHARES[fraction] + 0.03 * RUNS.index(run) + shift


def row(method: str, task: str, fraction: float | None, run: str, metric: str, value: float, phantom: bool) -> dict:
    kind, protocol, dataset, _, _ = TASKS[task]
    made = ResultRow(
        method=method,
        checkpoint=f"{list(METHODS).index(method):064x}",
        task=kind,
        protocol=protocol,
        dataset=dataset,
        part="test",
        split="own",
        split_sha256="ab" * 32,
        fraction=fraction,
        seed=0,
        metric=metric,
        value=value,
        low=value - 0.05,
        high=value + 0.05,
        level=0.95,
        resamples=1000,
        samples=200,
        groups=150,
        config_sha256="cd" * 32,
        seconds=12.5,
        hardware="2 x CPU",
        versions={"medvlp": "0.1.0", "torch": "2.14.1"},
        time="2026-11-24T16:52:45+00:00",
        notes={"data": {"phantom": phantom}},
    )
    job = f"{method}-{task}-{fraction}-{run}"
    benchmark = {
        "grid": "small",
        "method": method,
        "title": METHODS[method],
        "task": task,
        "run": run,
        "seeds": {"pretrain": 0, "data": RUNS.index(run), "head": 0},
        "job": job,
        "pretrain_job": None if method == "random" else f"pre-{method.removesuffix('_decoder')}",
    }
    return {**vars(made), "benchmark": benchmark}


def rows_of(phantom: bool = True) -> list[dict]:
    rows = []
    for method in METHODS:
        for task, (_, _, _, metric, fractions) in TASKS.items():
            if method == "random" and None in fractions:
                continue
            for fraction in fractions:
                for run in RUNS[:1] if fraction is None else RUNS:
                    value = value_of(method, task, fraction, run)
                    rows.append(row(method, task, fraction, run, metric, value, phantom))
                    if task == "linear_chexpert":
                        for n, name in enumerate(CLASSES):
                            other = value_of(method, task, fraction, run, 0.03 * (n - 1))
                            rows.append(row(method, task, fraction, run, f"auroc/{name}", other, phantom))
    return rows


def cost_of(number: int) -> dict:
    return {
        "seconds": 600.0 * (1 + number),
        "samples_per_second": 40.0 / (1 + number),
        "peak_memory_mb": 900.0 + 100 * number,
        "parameters": 30_000_000,
        "trainable_parameters": 25_000_000,
        "energy_kwh": 0.011 * (1 + number),
        "watts": 65.0,
        "device": "2 x CPU",
    }


def grid_of(panels: list[dict]) -> dict:
    pretrained = [name for name in METHODS if name not in ("random", "g2d_decoder")]
    common = {"run": "p0", "state": "done", "seconds": 60.0, "log": None, "error": None}
    jobs = [
        {**common, "hash": f"pre-{m}", "kind": "pretrain", "method": m, "title": METHODS[m], "cost": cost_of(n)}
        for n, m in enumerate(pretrained)
    ]
    failed = {"state": "failed", "error": "loss became NaN", "log": "jobs/f00/log.txt", "fraction": 0.1}
    jobs.append({**common, "hash": "f00", "kind": "task", "method": "mgca", "task": "detect_rsna", **failed})
    return {
        "name": "small",
        "title": "A small head-to-head",
        "methods": METHODS,
        "tasks": {name: {"title": name.replace("_", " "), "metric": ""} for name in TASKS},
        "cannot": {"random": ["zero_rsna", "ground_rsna"]},
        "jobs": jobs,
        "panels": panels,
    }


def radiographs(n: int, side: int) -> np.ndarray:
    """Two dark lungs in a grey chest, with grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    lungs = sum(np.exp(-(((x - c) / 0.16) ** 2 + ((y - 0.5) / 0.3) ** 2)) for c in (0.3, 0.7))
    return (np.clip(0.75 - 0.55 * lungs + 0.03 * rng.standard_normal((n, side, side)), 0, 1) * 255).astype(np.uint8)


def disc(side: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[0:side, 0:side]
    return (columns - x * side) ** 2 + (rows - y * side) ** 2 < (radius * side) ** 2


def arrays_of(kind: str, shift: float, n: int = 3, side: int = 64) -> dict[str, np.ndarray]:
    """Images with truth, and predictions that are off by a part of the image's side."""
    places = [(0.3 + 0.1 * i, 0.4 + 0.05 * i) for i in range(n)]
    found = {"ids": np.array([f"image-{i}" for i in range(n)]), "images": radiographs(n, side)}
    boxes = np.array([[[x - 0.1, y - 0.1, x + 0.1, y + 0.1], [np.nan] * 4] for x, y in places]) * side
    masks = np.stack([disc(side, x, y, 0.12) for x, y in places])
    guessed = np.stack([disc(side, x + shift, y, 0.12) for x, y in places])
    if kind == "segmentation":
        return {**found, "truth_masks": masks, "masks": guessed}
    if kind == "detection":
        return {**found, "truth_boxes": boxes, "boxes": boxes + shift * side, "scores": np.full((n, 2), 0.8)}
    rows, columns = np.mgrid[0:side, 0:side] / side
    heat = [np.exp(-((columns - x - shift) ** 2 + (rows - y) ** 2) / 0.02) for x, y in places]
    phrases = np.array(["Pneumonia"] * n)
    return {**found, "truth_masks": masks, "heatmaps": np.stack(heat).astype(np.float32), "phrases": phrases}


def write_benchmark(folder: Path, rows: list[dict] | None = None, grid: bool = True, pictures: bool = True) -> Path:
    """Writes a benchmark's folder.

    Returns:
        The results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows or rows_of()))
    panels = []
    if pictures:
        (folder / "panels").mkdir()
        kinds = {"seg_siim": "segmentation", "detect_rsna": "detection", "ground_rsna": "grounding"}
        for task, kind in kinds.items():
            for n, method in enumerate(("mgca", "g2d")):
                file = f"panels/{method}-{task}.npz"
                np.savez_compressed(folder / file, **arrays_of(kind, 0.08 - 0.05 * n))
                panels.append({"method": method, "title": METHODS[method], "task": task, "kind": kind, "file": file})
    if grid:
        (folder / "grid.json").write_text(json.dumps(grid_of(panels)))
    return path
