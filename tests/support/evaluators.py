"""A tiny checkpoint with a text side, and tiny phantoms in the layouts of corpora, for the tasks that train nothing."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from helpers import SIZE, sizes, tokenizer, trainer

from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.registry import get_method

FINDINGS = ("Cardiomegaly", "Consolidation", "Pleural Effusion", "Pneumothorax", "Atelectasis", "Edema")


def checkpoint(path: Path, name: str = "g2d", **changes: Any) -> str:
    """Writes a tiny untrained method with a tokenizer."""
    torch.manual_seed(0)
    arguments = {**sizes(), **changes}
    model = get_method(name)(**{key: value for key, value in arguments.items() if value is not None})
    if model.has_text:
        model.attach_tokenizer(tokenizer())
    model.preprocess = {"transform": "plain", "size": SIZE, "intensity": "standard"}
    model.save(path)
    return str(path)


def phantom(layout: str, root: Path, studies: int = 60, **changes: Any) -> str:
    """Writes a tiny phantom of six findings, frequent enough that each part of a split has all."""
    from medvlp.phantom import Difficulty

    options = {
        "size": 64,
        "seed": 1,
        "laterals": 0.0,
        "split": (0.4, 0.2, 0.4),
        "findings": FINDINGS,
        "difficulty": Difficulty(prevalence=4.0),
        **changes,
    }
    return str(write_phantom(layout, root, PhantomSpec(studies=studies, **options)))


def evaluate(name: str, places: dict[str, str], folder: str, devices: int = 1) -> dict[str, float]:
    """Runs one of the tasks that train nothing on a part of odd size.

    Args:
        name: "zero_shot", "grounding" or "retrieval".
        places: checkpoint ``g2d`` and the roots ``siim``, ``ms_cxr`` and ``mimic_cxr`` of phantoms.
        folder: of the run.
        devices: processes, which must be there already if there are several.

    Returns:
        Metric to value.
    """
    from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
    from medvlp.datamodules.ms_cxr import MSCXRDataModule
    from medvlp.datamodules.siim import SIIMDataModule
    from medvlp.tasks.encoder import EncoderSource
    from medvlp.tasks.grounding import Grounding
    from medvlp.tasks.retrieval import Retrieval
    from medvlp.tasks.zero_shot import ZeroShotClassification

    shared: dict[str, Any] = {"transform": "plain", "image_size": SIZE, "eval_batch_size": 4}
    source = EncoderSource(checkpoint=places["g2d"])
    options: dict[str, Any] = {"image_size": SIZE, "resamples": 20}
    if name == "zero_shot":
        data: Any = SIIMDataModule(places["siim"], task="classification", split="clean", **shared)
        model: Any = ZeroShotClassification(source, prompts="phantom", **options)
    elif name == "grounding":
        data = MSCXRDataModule(places["ms_cxr"], split="official", **shared)
        model = Grounding(source, figures=2, **options)
    else:
        data = MIMICCXRDataModule(places["mimic_cxr"], labels="truth", views=["PA", "AP", ""], **shared)
        classes = ["Cardiomegaly", "Pleural Effusion"]
        model = Retrieval(source, "gloria_5x200", classes=classes, precisions=[2], recalls=[5], **options)
    data.setup("test")
    odd = np.ones(len(data.test_set), bool)
    odd[0] = len(odd) % 2 == 1
    data.test_set = data.test_set.subset(odd)
    run = trainer(Path(folder), **({"devices": devices, "strategy": "ddp"} if devices > 1 else {}))
    run.test(model, datamodule=data, verbose=False)
    return {key: float(value) for key, value in run.callback_metrics.items()}


def work(rank: int, port: int, world: int, places: dict[str, str], folder: str) -> None:
    """One of several gloo processes: runs all three tasks and leaves their metrics in ``folder``."""
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
    names = ("zero_shot", "grounding", "retrieval")
    found = {name: evaluate(name, places, f"{folder}/{name}", world) for name in names}
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
