"""Every grid under experiments/benchmark/ becomes jobs, whose configs are those of the folders beside it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import write_config

from medvlp.benchmark.executors import Submitit
from medvlp.benchmark.grid import read_grid
from medvlp.benchmark.jobs import Job, expand
from medvlp.benchmark.work import devices_and_nodes
from medvlp.running import build_cli
from medvlp.text import train_wordpiece

ROOT = Path(__file__).parents[2]
GRIDS = sorted((ROOT / "experiments" / "benchmark").glob("*.yaml"))
ABLATIONS = ROOT / "experiments" / "benchmark" / "ablations_g2d.yaml"
TABLE1 = ROOT / "experiments" / "benchmark" / "g2d_table1.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Grids name configs from there."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_becomes_jobs(path, tmp_path):
    grid = read_grid(path)
    jobs = expand(grid)
    assert {job.method for job in jobs if job.kind == "task"} == set(grid.methods), "no method is left without a task"
    assert {job.task for job in jobs if job.kind == "task"} == set(grid.tasks)
    assert grid.name == path.stem
    assert grid.folder == Path("runs/benchmark", path.stem)
    pytest.importorskip("submitit", reason="submitit is not installed")
    Submitit(print, tmp_path, grid.slurm, "local")  # knows SLURM's parameters by name


@pytest.fixture(scope="module")
def table1() -> list[Job]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return expand(read_grid(TABLE1))


def test_table1_is_the_whole_table(table1):
    """Every cell of the paper's table that a method of ours can fill: 12 per encoder, 6 for encoder and decoder."""
    count = Counter(job.method for job in table1 if job.kind == "task")
    assert count == {"random": 12, "imagenet": 12, "convirt": 12, "gloria": 12, "mgca": 12, "g2d": 12, "g2d_decoder": 6}
    assert {job.fraction for job in table1 if job.kind == "task"} == {0.01, 0.1, 1.0}
    pretrained = {job.method: job for job in table1 if job.kind == "pretrain"}
    assert set(pretrained) == {"convirt", "gloria", "mgca", "g2d"}, "G2D's two rows share one pre-training"
    needs = {job.method: job.needs for job in table1 if job.kind == "task"}
    assert needs["g2d_decoder"] == needs["g2d"] == pretrained["g2d"].hash
    for job in pretrained.values():
        assert job.config["data"]["class_path"] == "MIMICCXRDataModule"
        assert job.config["model"]["init_args"]["image"]["name"] == "resnet50"
    assert {method: devices_and_nodes(job) for method, job in pretrained.items()} == {
        "convirt": (1, 1),
        "gloria": (1, 1),
        "mgca": (2, 1),
        "g2d": (8, 2),
    }


def test_table1_follows_the_paper_at_one_per_cent(table1):
    found = {
        (job.fraction, job.config["data"]["init_args"]["batch_size"], job.config["model"]["init_args"]["optim"]["lr"])
        for job in table1
        if job.task.startswith("detection")
    }
    assert found == {(0.01, 8, 2e-4), (0.1, 16, 5e-4), (1.0, 16, 5e-4)}
    decoders = {
        job.config["model"]["init_args"].get("transfer_decoder", False)
        for job in table1
        if job.method == "g2d_decoder" and job.kind == "task"
    }
    assert decoders == {True}


def test_table1_pre_trainings_build(table1, tmp_path):
    """With tiny encoders, on one CPU; GLoRIA's is no config of its own, since its corpus is another."""
    text = {"pretrained": None, "hidden_size": 32, "num_layers": 4, "num_heads": 2, "freeze_layers": 0}
    tiny = {"image": {"name": "resnet18", "pretrained": False}, "text": text}
    here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
    for job in table1:
        if job.kind == "pretrain":
            config = write_config(tmp_path / f"{job.method}.yaml", job.config)
            model = {"class_path": job.config["model"]["class_path"], "init_args": tiny}
            over = write_config(tmp_path / "tiny.yaml", {"trainer": here, "model": model})
            cli = build_cli(["--config", str(config), "--config", str(over)], run=False)
            assert type(cli.datamodule).__name__ == "MIMICCXRDataModule"
            assert cli.model.image_size == cli.datamodule.image_size == 224


def test_the_documented_cost_is_of_this_grid(table1):
    """docs/slurm.md reckons with the epochs and batches of the configs."""
    text = (ROOT / "docs" / "slurm.md").read_text()
    for job in table1:
        if job.kind == "pretrain":
            epochs, batch = job.config["trainer"]["max_epochs"], job.config["data"]["init_args"]["batch_size"]
            devices, nodes = devices_and_nodes(job)
            row = next(line for line in text.splitlines() if line.startswith(f"| {job.method} |"))
            cells = [cell.strip() for cell in row.split("|")[2:]]
            assert cells[:2] == [f"{nodes * devices} × {batch}", str(epochs)], job.method
            rate, total = float(cells[2]), float(cells[3])
            assert total == pytest.approx(rate * 213_384 * epochs / 1e9, abs=0.006)
            low, high = (float(hours) for hours in cells[4].split(" to "))
            operations = rate * 1e9 * 213_384 * epochs
            assert low == pytest.approx(operations / 50e12 / 3600, abs=0.06)
            assert high == pytest.approx(operations / 20e12 / 3600, abs=0.06)
    assert f"{len(table1)} jobs" in text


def test_the_documented_grid_is_one(tmp_path):
    text = (ROOT / "docs" / "benchmark.md").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    grid = read_grid(path)
    tasks = {name: task.by_fraction for name, task in grid.tasks.items()}
    assert tasks == {"zero_shot_rsna": {}, "linear_rsna": {"0.01": {"data.init_args.batch_size": 4}}}
    # what it names lies in this repository, but for what the reader brings
    mine = {"mymethod", "other"}
    jobs = expand(replace(grid, methods={name: spec for name, spec in grid.methods.items() if name not in mine}))
    assert len(jobs) == 2 + 2 + 2 * 2 * 3, "pre-trainings, zero-shot of each, and two methods, runs and three fractions"


def test_every_ablation_has_a_decoder_to_segment_with(tmp_path):
    """Each variant's own checkpoint, untrained, under the segmentation task as its job would build it."""
    jobs = expand(read_grid(ABLATIONS))
    pretrained = {job.hash: job for job in jobs if job.kind == "pretrain"}
    segmented = [job for job in jobs if job.task == "segmentation_siim" and job.run == "a"]
    assert len(segmented) == 16
    for job in segmented:
        origin = pretrained[job.needs]
        model = build_cli(["--config", str(write_config(tmp_path / "fit.yaml", origin.config))], run=False).model
        model.attach_tokenizer(train_wordpiece(["no acute process", "small left pneumothorax"], 60))
        model.preprocess = {"transform": "phantom", "size": 112, "intensity": "standard"}
        checkpoint = tmp_path / f"{job.method}.ckpt"
        model.save(checkpoint)
        job.config["model"]["init_args"]["encoder"] = {"checkpoint": str(checkpoint)}
        task = build_cli(["--config", str(write_config(tmp_path / "task.yaml", job.config))], run=False).model
        own = getattr(model, "decoder", None)
        assert task.decoder.out_channels == 1
        body = task.decoder.decoder.state_dict()
        transferred = own is not None and all(
            torch.equal(value, body[name]) for name, value in own.decoder.state_dict().items()
        )
        assert transferred == (job.method not in {"5a_none", "g2d_new_decoder"})
