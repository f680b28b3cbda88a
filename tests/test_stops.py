"""However a training is stopped, ``last.ckpt`` holds its last finished step, and resuming ends as if never stopped."""

import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import environment
from helpers import differences, selected
from stopped_fits import EPOCHS, EVERY, STEPS

PER_EPOCH = 3 * STEPS + 6
"""Counted calls in an epoch: three in each step, and six from the start of the validation on."""

VALIDATION, EPOCH_END = 3 * STEPS, 3 * STEPS + 5
"""Where in an epoch validation starts and its end comes."""

_ANY = random.Random(0)
_SIGNALS = [("term", VALIDATION), ("interrupt", PER_EPOCH + VALIDATION + 2), ("term", PER_EPOCH + VALIDATION - 1)]
# By the end of a step that is a multiple of EVERY; in the second epoch the sixth and the ninth.
_SAVES = [("full", 3 * EVERY - 1), ("kill while saving", PER_EPOCH + 2), ("full", PER_EPOCH + EPOCH_END)]
_RANDOM = [
    (kind, _ANY.randrange(3, EPOCHS * PER_EPOCH)) for kind in ("term", "interrupt", "kill", "time") for _ in range(4)
]
STOPS = [
    *_SIGNALS,
    *_SAVES,
    ("kill", VALIDATION + 1),  # with a checkpoint of the fifth step, or without
    *_RANDOM[::4],
    *[pytest.param(*stop, marks=pytest.mark.variant) for i, stop in enumerate(_RANDOM) if i % 4],
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request) -> Path:
    """The undisturbed run, and the stopped and resumed ones of the selected tests."""
    folder = tmp_path_factory.mktemp("stops")
    script = Path(__file__).parent / "support" / "stopped_fits.py"
    stops = {_name(kind, point): (kind, point) for kind, point in selected(request, "kind", "point")}
    subprocess.run([sys.executable, script, folder, json.dumps(stops)], env=environment(), check=True)
    return folder


def _name(kind: str, point: int) -> str:
    return f"{kind} at {point}"


def _last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def _expected(kind: str, point: int) -> int:
    """The step that ``last.ckpt`` must hold."""
    epoch, within = divmod(point, PER_EPOCH)
    # A step counts when its last call has been made; the signal comes in it, and it is finished before the run ends.
    if kind in ("term", "interrupt"):
        return epoch * STEPS + min(within // 3 + 1, STEPS)
    if kind == "time":  # the clock shows the calls made so far, and is read at the end of each step
        step = epoch * STEPS + max(-(-within // 3), 1) if within <= VALIDATION else (epoch + 1) * STEPS + 1
        return min(step, EPOCHS * STEPS)
    done = epoch * STEPS + min(within // 3, STEPS)
    # The epoch's end is saved after the last call that is counted in it, so that a stop there comes too early.
    return max(done // EVERY * EVERY, epoch * STEPS)


@pytest.mark.parametrize(("kind", "point"), STOPS)
def test_stopped_and_resumed(runs, kind, point):
    run, whole = runs / _name(kind, point), runs / "whole"
    notes = json.loads((run / "notes.json").read_text())
    code = {"term": 143, "interrupt": 130, "full": errno.ENOSPC, "time": 0}.get(kind, -9)
    assert (notes["code"], notes["step"]) == (code, _expected(kind, point))
    assert bool(notes["parts"]) == (kind == "kill while saving")
    assert notes["resumed"] == 0
    assert notes["parts at the end"] == []
    first, second = _last(run), _last(whole)
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert not differences(first[part], second[part], part)
    best = [torch.load(each / "checkpoints" / "best.ckpt", weights_only=True) for each in (run, whole)]
    assert not differences(best[0]["state_dict"], best[1]["state_dict"])
    stopping = [
        next(v for k, v in each["callbacks"].items() if k.startswith("EarlyStopping")) for each in (first, second)
    ]
    assert not differences(*stopping)


def test_every_step_and_epoch_of_the_undisturbed_run_is_in_its_last_checkpoint(runs):
    last = _last(runs / "whole")
    assert last["global_step"] == EPOCHS * STEPS
    assert len(json.loads((runs / "whole" / "work.json").read_text())) == EPOCHS * PER_EPOCH
