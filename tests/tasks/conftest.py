"""Tiny corpora and tiny pre-trained methods for the tests of tasks."""

from pathlib import Path

import lightning as L
import pytest
import torch
from helpers import sizes, tokenizer

from medvlp.phantom import PhantomSpec, write_phantom

SIDE = 32
FINDINGS = ("Cardiomegaly", "Consolidation", "Pneumothorax", "Pleural Effusion")


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """Roots of tiny phantoms by layout, each made when first asked for."""
    folder = tmp_path_factory.mktemp("corpora")

    def root(layout: str, studies: int = 60) -> Path:
        spec = PhantomSpec(studies=studies, size=64, laterals=0.0)
        return write_phantom(layout, folder / f"{layout}-{studies}", spec)

    return root


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Untrained checkpoints of tiny methods by name, each made when first asked for."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def path(name: str, **changes) -> str:
        from medvlp.registry import get_method

        place = folder / f"{name}-{abs(hash(str(sorted(changes.items()))))}.ckpt"
        if not place.is_file():
            torch.manual_seed(1)
            model = get_method(name)(**sizes(**changes))
            model.attach_tokenizer(tokenizer())
            model.preprocess = {"transform": "plain", "size": SIDE, "intensity": "standard"}
            model.save(place)
        return str(place)

    return path


@pytest.fixture
def run_task(tmp_path):
    """Fits (where there is anything to fit) and tests a task; returns the rows by metric."""

    def run(task, data, *, epochs: int = 1, folder: Path | None = None, **options) -> dict:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            default_root_dir=folder or tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            **options,
        )
        if task.trains and epochs:
            trainer.fit(task, datamodule=data)
        task.has_weights = True  # with no epochs, a random head was asked for
        trainer.test(task, datamodule=data, verbose=False)
        return {row.metric: row for row in task.rows}

    return run
