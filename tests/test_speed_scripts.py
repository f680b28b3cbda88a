"""The speed scripts run, agree with themselves and end with one line of JSON. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

SCRIPTS = Path(__file__).parents[1] / "experiments" / "speed"


@pytest.mark.slow
@pytest.mark.variant
def test_pseudo_mask():
    pytest.importorskip("cv2")
    tiny = ["--batch", "3", "--size", "64", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    step = ["--step", "--step-batch", "2", "--step-repeats", "1", "--image", "resnet18", "--tokens", "8"]
    step += ["--text-width", "48", "--text-layers", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "pseudo_mask.py"), *tiny, *step],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ratio"] > 0
    assert 0 < figures["share_of_step"] < 1
    assert figures["device"]
    assert {"torch", "kornia", "numpy", "medvlp"} <= figures["versions"].keys()
    result = figures["results"]["cpu"]
    for name in ("batched", "loop"):
        assert result[name]["min_ms"] <= result[name]["median_ms"] <= result[name]["max_ms"]
    assert result["differing_before_filter"] < 1e-3
    # OpenCV's window is a disc, kornia's a square.
    assert result["mean_difference_after"] < 0.01
    assert "medvlp, batched" in done.stdout


@pytest.mark.slow
def test_losses():
    options = ["--quick", "--threads", "1", "--device", "cpu", "--cases", "gloria_local"]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "losses.py"), *options],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ratio"] > 0
    assert figures["memory_ratio"] >= 0
    assert figures["ratio_batch"] == figures["memory_batch"] == 4
    result = figures["results"]["gloria_local"]["4"]
    assert result["batched_ms"] > 0
    assert result["loop_peak_mib"] >= 0
    assert result["difference"] < 1e-5
    assert result["cpu_ratio"] > 0


@pytest.mark.slow
@pytest.mark.variant
def test_probe():
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "probe.py"), "--quick", "--threads", "1"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ratio"] > 0
    assert figures["zero_shot_ratio"] > 0
    assert figures["auroc_difference"] <= 0.002
    assert figures["zero_shot_difference"] <= 1e-5


@pytest.mark.slow
@pytest.mark.variant
def test_step():
    methods = ["g2d", "maco", "mgca", "gloria", "template"]
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPTS / "step.py"),
            "--quick",
            "--threads",
            "1",
            "--device",
            "cpu",
            "--methods",
            *methods,
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ratio"] == figures["results"]["g2d"]["ratio"] > 0
    assert list(figures["results"]) == methods
    for name, found in figures["results"].items():
        terms = found["terms_ms"]
        assert found["bare_ms"] > 0
        assert found["step_ms"] > 0
        assert sum(found["terms_share"].values()) == pytest.approx(1, abs=0.01)
        assert {"image_encoder", "text_encoder", "optimiser", "the rest of the losses"} <= set(terms)
        assert all(spent >= 0 for spent in terms.values())
        # nothing of the encoders' backward passes is left without an owner
        assert found["terms_share"].get("gradients added up", 0) < 0.15, (name, terms)
    parts = {name: set(found["terms_ms"]) for name, found in figures["results"].items()}
    assert {"decoder", "pseudo_mask", "dice_bce_paper", "contrast"} <= parts["g2d"]
    assert {"decoder", "reconstruction_errors", "contrast_paper"} <= parts["maco"]
    assert {"patch_head", "word_head", "token_loss", "prototype_loss"} <= parts["mgca"]
    assert {"local_loss", "local_head", "global_head"} <= parts["gloria"]
    assert "ratio_whole" in figures["results"]["maco"]
