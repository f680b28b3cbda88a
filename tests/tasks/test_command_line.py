"""Tasks from the command line: fit, test, and the same numbers from two processes as from one."""

import json

import numpy as np
import pytest
import torch
import yaml
from helpers import image_config, mostly_variants

from medvlp.tasks.features import StoredFeatures


@pytest.fixture(scope="module")
def config(tmp_path_factory, corpora):
    """A config of a probe on a tiny phantom, and the run's folder."""
    folder = tmp_path_factory.mktemp("probe")
    encoder = image_config()
    settings = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": str(folder / "run"),
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": "${trainer.default_root_dir}/checkpoints", "save_last": True},
                }
            ],
        },
        "model": {
            "class_path": "Classification",
            "init_args": {
                "encoder": {"image": {"name": encoder.name, "depth": encoder.depth}},
                "image_size": 32,
                "resamples": 50,
            },
        },
        "data": {
            "class_path": "RSNADataModule",
            "init_args": {
                "root": str(corpora("rsna")),
                "split": "g2d",
                "transform": "phantom",
                "image_size": 32,
                "batch_size": 4,
                "eval_batch_size": 3,
            },
        },
    }
    path = folder / "probe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path, folder


def _rows(path) -> dict:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["metric"]: row for row in rows}


def test_fit_then_test_in_one_and_in_two_processes(config, command):
    path, folder = config
    command("fit", "--config", path).ok()
    best = folder / "run" / "checkpoints" / "last.ckpt"
    found = {}
    for devices in (1, 2):
        run = folder / f"test{devices}"
        strategy = ["--trainer.devices", devices, "--trainer.strategy", "ddp_fork"] if devices > 1 else []
        command("test", "--config", path, "--ckpt_path", best, "--trainer.default_root_dir", run, *strategy).ok()
        found[devices] = _rows(run / "results.jsonl")
    assert found[1]["auroc"]["samples"] % 2 == 1, "an odd number, so that two ranks share unequally"
    for metric, row in found[1].items():
        other = found[2][metric]
        for key in ("value", "low", "high"):
            assert other[key] == pytest.approx(row[key], rel=1e-6), (metric, key)
        for key in ("samples", "groups", "split_sha256", "checkpoint", "config_sha256"):
            assert other[key] == row[key]


def test_a_head_is_no_method(config, command):
    path, folder = config
    command("fit", "--config", path, "--trainer.default_root_dir", folder / "head").ok()
    head = folder / "head" / "checkpoints" / "last.ckpt"
    error = command("test", "--config", path, "--model.init_args.encoder.checkpoint", head).error()
    assert "the head of a task (Classification)" in error


def test_a_task_that_trains_nothing_says_so(corpora, checkpoints, command, tmp_path):
    error = command(
        *("fit", "--model", "ZeroShotClassification", "--model.encoder.checkpoint", checkpoints("g2d")),
        *("--data", "RSNADataModule", "--data.root", corpora("rsna"), "--data.transform", "checkpoint"),
        *("--trainer.default_root_dir", tmp_path, "--trainer.accelerator", "cpu", "--trainer.logger", "false"),
    ).error()
    assert "nothing to train" in error
    assert "medvlp test" in error


def test_list_tasks(command):
    shown = command("list", "tasks").ok().out
    for name in ("Classification", "Segmentation", "Detection", "ZeroShotClassification", "Grounding", "Retrieval"):
        assert name in shown


def test_two_processes_store_the_features_of_one(config, command, corpora):
    path, folder = config
    made = {}
    for devices in (1, 2):
        place, run = folder / f"features{devices}", folder / f"fit{devices}"
        strategy = ["--trainer.devices", devices, "--trainer.strategy", "ddp_fork"] if devices > 1 else []
        options = ["--trainer.default_root_dir", run, "--model.init_args.features_dir", place]
        command("fit", "--config", path, *options, *strategy).ok()
        made[devices] = {part.name: part for part in place.iterdir()}
    assert made[1].keys() == made[2].keys()
    assert len(made[1]) == 2, "of the training and of the validation part"
    for key, one in made[1].items():
        count = np.load(one / "shard0" / "index.npy").shape[1]
        ids = [str(i) for i in range(count)]
        whole, shards = StoredFeatures(one, ids), StoredFeatures(made[2][key], ids)
        assert len(shards._shards) == 2
        keys = [(i, 0) for i in np.random.default_rng(0).permutation(count).tolist()]
        first, second = whole.__getitems__(keys), shards.__getitems__(keys)
        assert first["id"] == second["id"]
        for name in ("index", "label"):
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(first["features"], second["features"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_untrained_head_is_not_scored(config, command, tmp_path, stage):
    path, _ = config
    line = command(stage, "--config", path, "--trainer.default_root_dir", tmp_path).error()
    assert "neither trained nor loaded" in line
    assert "medvlp fit" in line
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    assert f"--ckpt_path {best}" in command(stage, "--config", path, "--trainer.default_root_dir", tmp_path).error()
    assert not (tmp_path / "results.jsonl").exists()
    assert not (tmp_path / "features").exists(), "the encoder ran over images whose scores are refused"


def test_a_task_predicts_nothing(config, command):
    assert "embeds nothing" in command("predict", "--config", config[0]).error()


def _first_group(checkpoint):
    return checkpoint["optimizer_states"][0]["param_groups"][0]


def _first_weight(checkpoint):
    return next(value for value in checkpoint["state_dict"].values() if value.is_floating_point())


@pytest.mark.parametrize(
    ("stage", "change"),
    mostly_variants(
        [
            ("test", lambda c: _first_weight(c).fill_(float("nan"))),
            ("test", lambda c: c.update(state_dict=None)),
            ("test", lambda c: c["state_dict"].popitem()),
            ("test", lambda c: c["medvlp"].update(encoder_sha256=3)),
            ("test", lambda c: c.update(medvlp=[])),
            ("test", lambda c: c.update({"pytorch-lightning_version": "new"})),
            ("fit", lambda c: c.update({"pytorch-lightning_version": None})),
            ("fit", lambda c: c.update(loops={"fit_loop": {"epoch_loop.state_dict": "x"}})),
            ("fit", lambda c: c["optimizer_states"][0].update(param_groups=None)),
            ("fit", lambda c: _first_group(c).update(lr="fast")),
            ("fit", lambda c: _first_group(c).update(params=[])),
            ("fit", lambda c: c["callbacks"].update({key: None for key in c["callbacks"]})),
        ],
        3,
    ),
)
def test_a_damaged_checkpoint_of_a_task_is_one_line(config, command, tmp_path, stage, change):
    path, folder = config
    last = folder / "run" / "checkpoints" / "last.ckpt"
    if not last.is_file():
        command("fit", "--config", path).ok()
    checkpoint = torch.load(last, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    options = ("--ckpt_path", tmp_path / "changed.ckpt", "--trainer.default_root_dir", tmp_path / "run")
    assert "changed.ckpt" in command(stage, "--config", path, *options, "--trainer.max_epochs", 4).error()
