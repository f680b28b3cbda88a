"""A checkpoint that an earlier release wrote still loads, gives the same numbers, and resumes."""

import shutil
from pathlib import Path

import numpy as np
import torch
from command_line import tiny_config, write_config

import medvlp
from medvlp.phantom import PhantomSpec, write_phantom

CHECKPOINT = Path(__file__).parent / "data" / "g2d-0.2.0.ckpt"
"""G2D after one epoch of two steps on 48 studies of the phantom, with the state of its optimiser."""

SCORES = {"Pneumothorax": 0.5326931, "Edema": 0.5425695, "Cardiomegaly": 0.5200647}
"""What 0.2.0 gave with torch 2.15.0, for the image below."""


def test_it_gives_the_same_scores():
    image = np.arange(64 * 64).reshape(64, 64).astype(np.uint8)
    scores = medvlp.load(CHECKPOINT).zero_shot([image], list(SCORES))
    np.testing.assert_allclose(scores.loc[0, list(SCORES)], list(SCORES.values()), rtol=1e-4)


def test_it_resumes(command, tmp_path):
    write_phantom("mimic_cxr", tmp_path / "phantom", PhantomSpec(studies=48, size=64))
    config = tiny_config(tmp_path / "phantom", tmp_path / "run")
    config["trainer"].update(max_epochs=2, limit_train_batches=2, limit_val_batches=1)
    init_args = config["model"]["init_args"]
    init_args["image"]["options"] = {"channels": [8, 8, 16, 16], "stem_width": 8}
    init_args["text"].update(hidden_size=16, vocab_size=300)
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(CHECKPOINT, folder / "last.ckpt")
    command("fit", "--config", write_config(tmp_path / "c.yaml", config), "--ckpt_path", "last").ok()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
