"""A tiny checkpoint with a text side, and tiny phantoms in the layouts of corpora, for the tasks that train nothing."""

from pathlib import Path
from typing import Any

import torch
from helpers import SIZE, sizes, tokenizer

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
