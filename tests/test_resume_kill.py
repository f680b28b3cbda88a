"""A run that is killed and resumed ends bit for bit where the uninterrupted one ends."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import environment, tiny_config, write_config
from helpers import differences, mostly_variants

PER_EPOCH = 6
"""36 training studies in batches of 6."""


def _config(root: Path, run: Path, workers: int = 0, every: int = 1) -> dict:
    config = tiny_config(root, run, num_workers=workers)
    config["trainer"].update(max_epochs=2, num_sanity_val_steps=-1)
    config["trainer"]["callbacks"][0]["init_args"]["every_n_train_steps"] = every
    config["trainer"]["callbacks"].append({"class_path": "medvlp.callbacks.ZeroShotReport"})
    return config


def _killed(config: dict, step: int, hook: str) -> dict:
    config = copy.deepcopy(config)
    config["trainer"]["callbacks"].append({"class_path": "kill_at.KillAt", "init_args": {"step": step, "hook": hook}})
    return config


def _last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def _assert_same_end(run: Path, whole: Path) -> None:
    first, second = _last(run), _last(whole)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert not differences(first[part], second[part], part)
    assert json.loads((run / "zero_shot.json").read_text()) == json.loads((whole / "zero_shot.json").read_text())


@pytest.fixture(scope="module")
def whole(command, tiny_phantom, tmp_path_factory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    command("fit", "--config", write_config(run.parent / "c.yaml", _config(tiny_phantom, run))).ok()
    assert _last(run)["global_step"] == 2 * PER_EPOCH
    return run


def test_randomness_matters(command, tiny_phantom, whole, tmp_path):
    """Another seed leads elsewhere: the equalities below are not those of a run without randomness."""
    config = _config(tiny_phantom, tmp_path / "run")
    config["seed_everything"] = 8
    # The same initial weights, so that only dropout can make the difference.
    initial = dict(config, trainer={**config["trainer"], "max_steps": 1})
    initial["seed_everything"] = 7
    command("fit", "--config", write_config(tmp_path / "a.yaml", initial)).ok()
    one = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    other = command(
        "fit", "--config", write_config(tmp_path / "b.yaml", config), "--ckpt_path", "last", "--trainer.max_steps", "12"
    )
    other.ok()
    assert one["global_step"] == 1
    assert differences(_last(tmp_path / "run")["state_dict"], _last(whole)["state_dict"])


# Hooks of callbacks other than ModelCheckpoint come before its own, so that the start of a batch is the first moment
# after the checkpoint of the one before.
KILLS = {
    "after the first checkpoint": (1, "on_train_batch_start", 1, 0),
    "in a backward pass in mid-epoch": (3, "on_after_backward", 1, 0),
    "between a step and its checkpoint": (4, "on_train_batch_end", 2, 0),
    "at the epoch's end, before validation": (PER_EPOCH, "on_validation_start", 1, 0),
    "after validation": (PER_EPOCH, "on_validation_end", 1, 0),
    "in the second epoch, with a loader worker": (PER_EPOCH + 3, "on_train_batch_start", 2, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("step", "hook", "every", "workers"), mostly_variants(KILLS.values(), 3, KILLS))
def test_killed_and_resumed(command, tiny_phantom, whole, tmp_path, step, hook, every, workers):
    config = _config(tiny_phantom, tmp_path / "run", workers, every)
    killed = command("fit", "--config", write_config(tmp_path / "killed.yaml", _killed(config, step, hook)))
    assert killed.code == -signal.SIGKILL, killed.err
    done = _last(tmp_path / "run")["global_step"]
    assert 0 < done <= step
    resumed = command("fit", "--config", write_config(tmp_path / "c.yaml", config), "--ckpt_path", "last").ok()
    assert "Restored all states" in resumed.err
    _assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_through_the_real_command_line(tiny_phantom, whole, tmp_path):
    """The same in processes that a shell would start; killed from outside as well as by itself."""
    config = _config(tiny_phantom, tmp_path / "run")
    support = str(Path(__file__).parent / "support")

    def medvlp(*argv: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "medvlp", *map(str, argv)],
            env=environment(PYTHONPATH=os.pathsep.join([support, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    killed = medvlp("fit", "--config", write_config(tmp_path / "k.yaml", _killed(config, 5, "on_before_zero_grad")))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = medvlp("fit", "--config", write_config(tmp_path / "c.yaml", config), "--ckpt_path", "last")
    assert resumed.returncode == 0, resumed.stderr
    _assert_same_end(tmp_path / "run", whole)
