"""A grid that runs in seconds: a tiny G2D, random weights, and a task of each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import tiny_config, write_config

from medvlp.phantom import PhantomSpec, write_phantom

PHANTOM: dict[str, Any] = {"studies": 60, "size": 64, "laterals": 0.0, "split": [0.6, 0.2, 0.2]}


def _keeps_the_best(monitor: str) -> dict[str, Any]:
    arguments = {"dirpath": "${trainer.default_root_dir}/checkpoints", "filename": "best", "monitor": monitor}
    return {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {**arguments, "mode": "max", "save_last": True, "enable_version_counter": False},
    }


def task_config(kind: str, data: str, root: Path, model: dict[str, Any], monitor: str = "", **more: Any) -> dict:
    """A config of a task on a tiny phantom in the layout of the data module."""
    trainer: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "default_root_dir": "runs/elsewhere",
    }
    if monitor:
        trainer |= {"max_epochs": 3, "num_sanity_val_steps": 0, "callbacks": [_keeps_the_best(monitor)]}
    arguments = {"encoder": {"checkpoint": "runs/elsewhere/last.ckpt"}, "image_size": 64, "resamples": 50, **model}
    return {
        "seed_everything": 0,
        "trainer": trainer,
        "model": {"class_path": kind, "init_args": arguments},
        "data": {
            "class_path": data,
            "init_args": {
                **{"root": str(root), "phantom": PHANTOM, "split": "clean", "transform": "checkpoint"},
                **{"image_size": 64, "batch_size": 4, "eval_batch_size": 16, "num_workers": 0, **more},
            },
        },
    }


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """The tiny phantoms of the benchmarks, written once: what a run does then is the same each time."""
    folder = tmp_path_factory.mktemp("phantoms")
    for layout in ("rsna", "siim"):
        write_phantom(layout, folder / layout, PhantomSpec(**{**PHANTOM, "split": tuple(PHANTOM["split"])}))
    return folder


@pytest.fixture
def tiny_grid(tmp_path, phantoms, tiny_phantom) -> Callable[..., Path]:
    """Writes the grid with its configs into the test's folder; keywords go over its content."""

    def write(**changes: Any) -> Path:
        pretrain = tiny_config(tiny_phantom, tmp_path / "elsewhere")
        configs = {
            "g2d": pretrain,
            "linear": task_config(
                "Classification", "RSNADataModule", phantoms / "rsna", {"protocol": "linear"}, "val/auroc"
            ),
            "segmentation": task_config(
                *("Segmentation", "SIIMDataModule", phantoms / "siim"),
                *({"protocol": "frozen", "decoder_widths": [4, 4, 4]}, "val/dice_all"),
                task="segmentation",
            ),
            "zero_shot": task_config(
                "ZeroShotClassification", "RSNADataModule", phantoms / "rsna", {"prompts": "phantom_rsna"}
            ),
        }
        files = {name: str(write_config(tmp_path / f"{name}.yaml", config)) for name, config in configs.items()}
        grid = {
            "name": "tiny",
            "work": str(tmp_path / "work"),
            "fractions": [0.5, 1.0],
            "watts": 50,
            "runs": [{"pretrain": 0, "data": 0, "head": 0}, {"pretrain": 0, "data": 1, "head": 1}],
            "methods": {
                "random": {
                    "title": "Random",
                    "encoder": {
                        "image": {"name": "resnet18", "depth": 3},
                        "preprocess": {"transform": "phantom", "size": 64, "intensity": "standard"},
                    },
                },
                "g2d": {"title": "G2D", "pretrain": files["g2d"]},
            },
            "tasks": {
                "linear_rsna": {"config": files["linear"]},
                "segmentation_siim": {"config": files["segmentation"], "fractions": [1.0], "panels": 1},
                "zero_shot_rsna": {"config": files["zero_shot"]},
            },
            **changes,
        }
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(grid, sort_keys=False))
        return path

    return write
