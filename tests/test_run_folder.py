"""What a second run in the folder of a first one may do, and damaged checkpoints in it."""

import os
import shutil

import pytest
import torch
from command_line import tiny_config, write_config
from helpers import mostly_variants


@pytest.fixture(scope="module")
def first(command, tiny_phantom, tmp_path_factory):
    """A config and the folder of its run, of two steps in each of two epochs."""
    folder = tmp_path_factory.mktemp("first") / "run"
    config = tiny_config(tiny_phantom, folder)
    config["trainer"].update(limit_train_batches=2, limit_val_batches=1, max_epochs=2)
    config["trainer"]["callbacks"][0]["init_args"].update(every_n_train_steps=3, save_top_k=-1)
    path = write_config(folder.parent / "c.yaml", config)
    command("fit", "--config", path).ok()
    return path, folder


@pytest.fixture
def again(first, tmp_path):
    """The same, in a copy that a test may change: the arguments of the command, and the folder."""
    path, folder = first
    copy = shutil.copytree(folder, tmp_path / "run")
    return ["--config", path, "--trainer.default_root_dir", copy], copy / "checkpoints"


def test_the_last_step_is_kept_between_and_after_the_multiples(first):
    _, folder = first
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["epoch=1-step=3.ckpt", "last.ckpt"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_second_run_is_refused_unless_it_resumes_or_overwrites(command, again):
    argv, folder = again
    before = (folder / "last.ckpt").read_bytes()
    line = command("fit", *argv).error()
    assert all(word in line for word in ("last.ckpt", "--ckpt_path last", "--overwrite true", "default_root_dir"))
    assert (folder / "last.ckpt").read_bytes() == before
    command("fit", *argv, "--trainer.fast_dev_run", "true").ok()
    command("validate", *argv, "--ckpt_path", "last").ok()
    assert (folder / "last.ckpt").read_bytes() == before

    command("fit", *argv, "--ckpt_path", "last", "--trainer.max_epochs", "3").ok()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 6

    command("fit", *argv, "--overwrite", "true", "--trainer.max_steps", "1").ok()
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1
    assert "overwrite" not in (folder.parent / "config.yaml").read_text()


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"no checkpoint at all",
    "a few bytes": lambda data: data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :],
}


@pytest.mark.parametrize("damage", mostly_variants(DAMAGES, 2))
def test_a_damaged_checkpoint_is_an_error_that_names_the_newest_sound_one(command, again, damage):
    argv, folder = again
    damaged = folder / "last.ckpt"
    sound = folder / "epoch=1-step=3.ckpt"
    shutil.copy(sound, folder / "older.ckpt")
    (folder / "newer.ckpt").write_bytes(b"")
    for age, name in enumerate([folder / "newer.ckpt", sound, folder / "older.ckpt"]):
        os.utime(name, (1e9 - age, 1e9 - age))
    damaged.write_bytes(DAMAGES[damage](damaged.read_bytes()))
    for word in ("last", damaged):
        line = command("fit", *argv, "--ckpt_path", word).error()
        assert str(damaged) in line
        assert f"the newest intact one is {sound}" in line


@pytest.mark.parametrize("word", ["best", "hpc"])
def test_words_that_mean_nothing_in_a_new_process(command, again, word):
    argv, folder = again
    line = command("fit", *argv, "--ckpt_path", word).error()
    assert str(folder / "last.ckpt") in line
