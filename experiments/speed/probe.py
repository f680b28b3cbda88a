"""Times linear probes on stored features against live ones, and zero-shot with one encoding against one per class.

- probe: the same task, data, head, order and learning rate twice, ``features: cached`` and ``features: live``, each
  from nothing: encoding, training, validation in every epoch, test. Images are not augmented, so both see the same.
- zero_shot: positive-negative scores of all classes from images that are encoded once, against encoding them for each
  class, as released code does.

Both sides run alternately in one process. The images are a phantom, prepared once (``medvlp prepare``'s cache), which
spares the live side the decoding.

    python experiments/speed/probe.py
    python experiments/speed/probe.py --quick    # seconds

The last line is one JSON object with every figure; ``ratio`` is the probe's, ``zero_shot_ratio`` the other.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import lightning as L
import torch

from medvlp.datamodules.rsna import RSNADataModule
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.results import hardware
from medvlp.scoring.prompts import prompt_embeddings, zero_shot_probability
from medvlp.tasks.classification import Classification
from medvlp.tasks.encoder import EncoderSource, TaskEncoder


def run_probe(args: argparse.Namespace, root: Path, cache: Path, features: str) -> tuple[float, float]:
    """Seconds of fit and test from nothing, and the AUROC."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        task = Classification(
            EncoderSource(image=ImageEncoderConfig(name=args.encoder)),
            protocol="linear_mgca",
            image_size=args.size,
            features=features,  # type: ignore[arg-type]
            resamples=0,
        )
        data = RSNADataModule(
            str(root),
            split="g2d",
            transform="plain",
            image_size=args.size,
            batch_size=args.batch,
            eval_batch_size=128,
            cache_dir=str(cache),
        )
        trainer = L.Trainer(
            accelerator=args.device,
            devices=1,
            max_epochs=args.epochs,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(task, datamodule=data)
        trainer.test(task, datamodule=data, verbose=False)
        seconds = time.perf_counter() - start
        return seconds, next(row.value for row in task.rows if row.metric == "auroc")  # type: ignore[misc]


@torch.no_grad()
def run_zero_shot(args: argparse.Namespace, images: torch.Tensor, encoder: TaskEncoder, once: bool) -> tuple:
    """Seconds, and the scores (N, classes), with an ensemble of prompts per class."""
    generator = torch.Generator().manual_seed(0)
    width = encoder.width
    sides = [torch.stack([prompt_embeddings(torch.randn(4, width, generator=generator)) for _ in range(args.classes)])
             for _ in range(2)]  # fmt: skip
    positive, negative = (side.to(images.device) for side in sides)

    def encode() -> torch.Tensor:
        return torch.cat([encoder.pooled(part) for part in images.split(64)])

    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    if once:
        scores = zero_shot_probability(encode(), positive, negative)
    else:
        columns = [zero_shot_probability(encode(), positive[c, None], negative[c, None]) for c in range(args.classes)]
        scores = torch.cat(columns, 1)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, scores.cpu()


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=112, help="side of the images")
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--images", type=int, default=256, help="of the zero-shot comparison")
    parser.add_argument("--repeats", type=int, default=3, help="of each side of the zero-shot comparison")
    parser.add_argument("--probe-repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.studies, args.epochs, args.batch, args.size, args.images = 60, 3, 8, 32, 16
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    seconds: dict[str, list[float]] = {"cached": [], "live": []}
    auroc: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = write_phantom("rsna", folder / "rsna", PhantomSpec(studies=args.studies, size=args.size, laterals=0.0))
        where = ["--root", str(root), "--out", str(folder / "cache"), "--transform", "plain", "--size", str(args.size)]
        subprocess.run([sys.executable, "-m", "medvlp", "prepare", "rsna", *where], check=True)
        for _ in range(args.probe_repeats):
            for features in ("cached", "live"):
                spent, auroc[features] = run_probe(args, root, folder / "cache", features)
                seconds[features].append(spent)
    encoder = TaskEncoder(EncoderSource(image=ImageEncoderConfig(name=args.encoder)), args.size).eval()
    device = torch.device(args.device)
    encoder, images = encoder.to(device), torch.rand(args.images, 3, args.size, args.size).to(device)
    times: dict[bool, list[float]] = {True: [], False: []}
    scores = {}
    for turn in range(args.repeats + 1):  # the first warms up
        for once in (True, False):
            spent, scores[once] = run_zero_shot(args, images, encoder, once)
            if turn:
                times[once].append(spent)
    medians = {features: statistics.median(values) for features, values in seconds.items()}
    figures = {
        "benchmark": "frozen encoders",
        "ratio": round(medians["live"] / medians["cached"], 2),
        "seconds": {features: round(value, 2) for features, value in medians.items()},
        "auroc": auroc,
        "auroc_difference": abs(auroc["live"] - auroc["cached"]),
        "zero_shot_ratio": round(statistics.median(times[False]) / statistics.median(times[True]), 2),
        "zero_shot_seconds": {"once": statistics.median(times[True]), "per class": statistics.median(times[False])},
        "zero_shot_difference": float((scores[True] - scores[False]).abs().max()),
        "settings": {key: value for key, value in vars(args).items() if key != "quick"},
        "device": hardware(),
        "versions": {"medvlp": version("medvlp"), "torch": torch.__version__, "python": platform.python_version()},
    }
    for key in ("ratio", "seconds", "auroc", "zero_shot_ratio", "zero_shot_seconds"):
        print(f"{key}: {figures[key]}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
