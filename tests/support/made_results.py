"""Small results files of classification with their predictions, as a benchmark collects them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvlp.metrics.bootstrap import group_codes, interval
from medvlp.metrics.samples import Samples
from medvlp.results import ResultRow, write_predictions
from medvlp.tasks.base import bootstrap_seed
from medvlp.tasks.classification import Classification


def predictions(effect: float, seed: int, patients: int = 150, images: int = 1, classes: int = 1) -> Samples:
    """Scores that tell the classes apart the better the larger the effect is; labels are the same for all seeds."""
    n = patients * images
    labels = (np.random.default_rng(0).random((n, classes)) < 0.4).astype(np.float32)
    shared = np.random.default_rng(1).normal(size=(n, classes))
    noise = np.random.default_rng([2, seed, int(1000 * effect)]).normal(size=(n, classes))
    score = torch.from_numpy(np.float32(effect * labels + shared + 0.5 * noise)).sigmoid()
    return Samples(torch.arange(n), {"score": score, "label": torch.from_numpy(labels)})


def rows_of(
    folder: Path,
    method: str,
    run: str,
    samples: Samples,
    *,
    images: int = 1,
    benchmark: bool = True,
    resamples: int = 100,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Writes predictions and returns the rows that a task would write with them."""
    classes = samples["score"].shape[1]
    names = ["Edema", "Mass", "Fracture"][:classes]
    facts = {"classes": names, "labels": "multilabel", "lr": 0.1, "thresholds": [0.6] * classes}
    measures = Classification.measures_from(facts)
    groups = [f"patient{i // images}" for i in range(len(samples))]
    name = f"predictions/{method}-{run}.parquet"
    digest = write_predictions(folder / name, samples.to_frame([f"image{i}" for i in range(len(samples))], groups))
    seed = bootstrap_seed(len(samples))
    between = interval(measures, samples, group_codes(groups), resamples, 0.95, seed)
    common = {
        "method": method,
        "checkpoint": "c",
        "task": "classification",
        "protocol": "linear",
        "dataset": "rsna",
        "part": "test",
        "split": "clean",
        "split_sha256": "s",
        "fraction": 1.0,
        "seed": 0,
        "level": 0.95,
        "resamples": resamples,
        "samples": len(samples),
        "groups": len(set(groups)),
        "predictions": name,
        "predictions_sha256": digest,
        "config_sha256": f"{method} {run}",
        "notes": {"model": {"labels": "multilabel"}, **facts},
        **changes,
    }
    own = {"grid": "g", "method": method, "title": method.upper(), "task": "linear_rsna", "run": run, "job": "j"}
    found = []
    for metric, value in measures(samples, None).items():
        low, high = between[metric]
        row = asdict(ResultRow(**{**common, "metric": metric, "value": float(value), "low": low, "high": high}))
        found.append({**row, "benchmark": own} if benchmark else row)
    return found


def write(path: Path, *groups: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for rows in groups for row in rows))
    return path
