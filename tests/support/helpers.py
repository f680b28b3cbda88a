"""Tiny encoders, batches and data that several test files share."""

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medvlp import registry
from medvlp.datamodules.pairs import PairsDataModule
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.text import train_wordpiece

SIZE = 32
MARKER = "zweihaender quokka marginalia"
"""Words of every report of :func:`write_pairs`, and of nothing else."""

WORDS = ("small left effusion", "normal heart size", "edema is seen", "no pneumothorax", "clear lungs", "rib fracture")


def image_config(**changes: Any) -> ImageEncoderConfig:
    return ImageEncoderConfig(**{"name": "test_resnet", "depth": 2, **changes})


def text_config(**changes: Any) -> TextEncoderConfig:
    tiny = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 200, "max_length": 24}
    return TextEncoderConfig(**{**tiny, **changes})


def sizes(**changes: Any) -> dict[str, Any]:
    """Arguments that make any method tiny."""
    return {"image": image_config(), "text": text_config(), "image_size": SIZE, "embed_dim": 16, **changes}


TINY = {
    # a masked autoencoder needs a vision transformer, and its joint space is as wide as the text encoder
    "maco": {
        "image": image_config(
            name="vit_tiny_patch16_224", depth=None, options={"embed_dim": 32, "depth": 3, "num_heads": 2}
        ),
        "super_resolution": False,
        "decoder_dim": 32,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "embed_dim": None,
    },
    "gloria": {"text_layers": 1},
    "mgca": {"num_prototypes": 12, "head_dim": 24},
    "convirt": {"text": text_config(pooling="max")},
    "random": {"text": None, "embed_dim": None},
    "imagenet": {"text": None, "embed_dim": None},
}
"""Settings beside ``helpers.sizes`` that a method needs to be tiny; None takes one of those away."""


def build(name: str, **changes: Any) -> Any:
    """A tiny method of that name."""
    torch.manual_seed(0)
    arguments = {**sizes(), **TINY.get(name, {}), **changes}
    return registry.get_method(name)(**{k: v for k, v in arguments.items() if v is not None})


def tokenizer(vocab_size: int = 200) -> Any:
    return train_wordpiece([*WORDS, MARKER] * 3, vocab_size=vocab_size)


def chest(size: int = 64, seed: int = 0) -> np.ndarray:
    """A drawn chest, uint8 (size, size): dark air, bright body, dark lungs, bright spine, a little noise."""
    y, x = np.mgrid[0:size, 0:size] / size
    body = (np.abs(x - 0.5) < 0.4) & (y > 0.1)
    lungs = ((x - 0.32) / 0.13) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1
    lungs |= ((x - 0.68) / 0.13) ** 2 + ((y - 0.5) / 0.28) ** 2 < 1
    level = np.where(lungs, 50.0, np.where(body, 170.0, 12.0))
    return (level + np.random.default_rng(seed).uniform(-9, 9, (size, size))).clip(0, 255).astype(np.uint8)


def chests(count: int, size: int = 64) -> torch.Tensor:
    """(count, 3, size, size) in [0, 1], each with its own noise."""
    gray = np.stack([chest(size, seed) for seed in range(count)])
    return torch.from_numpy(gray)[:, None].expand(-1, 3, -1, -1).float() / 255


def batch(count: int = 4, size: int = SIZE, length: int = 7, vocabulary: int = 40) -> dict[str, Any]:
    g = torch.Generator().manual_seed(count)
    mask = torch.ones(count, length, dtype=torch.int64)
    mask[0, length - 2 :] = 0
    # every piece a word, but for the first and the last token of each text
    groups = (torch.arange(length) - 1).where((torch.arange(length) < mask.sum(1, keepdim=True) - 1), -1)
    return {
        "image": chests(count, size) + 0.05 * torch.rand(count, 1, size, size, generator=g),
        "input_ids": torch.randint(5, vocabulary, (count, length), generator=g) * mask,
        "attention_mask": mask,
        "word_groups": groups,
        "text": [f"report {i}" for i in range(count)],
        "id": [f"item{i}" for i in range(count)],
        "index": torch.arange(count),
        "label": torch.tensor([[i % 2, (i // 2) % 2] for i in range(count)]).float(),
        "skipped": [],
    }


def write_pairs(folder: Path, count: int = 16, size: int = 40) -> str:
    """PNGs and a table of them; the reports all hold :data:`MARKER`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(chest(size, i)).save(folder / f"{i}.png")
    frame = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(count)],
            "text": [f"{WORDS[i % len(WORDS)]}. {MARKER}. case {i}." for i in range(count)],
            "split": ["train" if i < count - 6 else "val" for i in range(count)],
            "Edema": [i % 2 for i in range(count)],
            "Fracture": [(i // 2) % 2 for i in range(count)],
        }
    )
    frame.to_csv(folder / "pairs.csv", index=False)
    return str(folder / "pairs.csv")


def datamodule(folder: Path, **changes: Any) -> PairsDataModule:
    table = write_pairs(folder)
    options = {
        "image_column": "image",
        "split_column": "split",
        "label_columns": ["Edema", "Fracture"],
        "batch_size": 2,
        "image_size": SIZE,
        **changes,
    }
    return PairsDataModule(table, **options)


def trainer(folder: Path, **changes: Any) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    os.environ.pop("PL_GLOBAL_SEED", None)
    options = {
        "default_root_dir": str(folder),
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
        **changes,
    }
    return L.Trainer(**options)


def differences(first, second, at: str = "") -> list[str]:
    """Where two nested states differ; tensors must agree in every bit."""
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [at]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{at}: {first.keys() ^ second.keys()}"]
        return [d for key in first for d in differences(first[key], second[key], f"{at}/{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{at}: lengths {len(first)} and {len(second)}"]
        return [d for i, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{at}/{i}")]
    return [] if first == second else [f"{at}: {first} and {second}"]


def mostly_variants(values: Iterable[Any], quick: int = 1, ids: Iterable[str] | None = None) -> list[Any]:
    """Parameters of a test: the first ``quick`` values, and the others marked ``variant`` (``tests/run --all``)."""
    values = list(values)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), id=name, marks=pytest.mark.variant if i >= quick else ()
        )
        for i, (value, name) in enumerate(zip(values, ids or [None] * len(values), strict=True))
    ]


def selected(request: pytest.FixtureRequest, *names: str) -> list[tuple]:
    """Values of these parameters in the selected tests of a fixture's module, each once, in the order of the tests."""
    parameters = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    return list(dict.fromkeys(tuple(each[n] for n in names) for each in parameters if set(names) <= set(each)))
