"""Two processes end together when one of them is told to, and when one of them is frozen."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import environment
from helpers import selected

STEPS = 5
TERM, STOP = int(signal.SIGTERM), int(signal.SIGSTOP)

SIGNALS = {
    "the first, in a step": ([(0, TERM, "on_after_backward", 2)], 3),
    "the second, in a step": ([(1, TERM, "on_after_backward", 2)], 3),
    "both": ([(0, TERM, "on_train_batch_start", 3), (1, TERM, "on_train_batch_end", 4)], 4),
    "the second, in the last step of an epoch": ([(1, TERM, "on_after_backward", STEPS - 1)], STEPS),
    "the second, in validation": ([(1, TERM, "on_validation_batch_end", STEPS)], STEPS),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request) -> Path:
    """Folders of the selected runs, by number. This would not end if one of them did not."""
    folder = tmp_path_factory.mktemp("ddp_stops")
    frozen = [([(rank, STOP, "on_after_backward", 2)], 5.0) for rank in range(2)]
    every = [*((signals, 600.0) for signals, _ in SIGNALS.values()), *frozen]
    numbers = [n for (n,) in selected(request, "number")] + [len(SIGNALS) + n for (n,) in selected(request, "frozen")]
    stops = {str(n): every[n] for n in numbers}
    script = Path(__file__).parents[1] / "support" / "ddp_stops.py"
    subprocess.run([sys.executable, script, folder, json.dumps(stops)], env=environment(), check=True)
    return folder


_QUICK = ("the first, in a step", "the second, in validation")


@pytest.mark.parametrize(
    "number",
    [pytest.param(i, id=name, marks=() if name in _QUICK else pytest.mark.variant) for i, name in enumerate(SIGNALS)],
)
def test_sigterm_ends_both_after_the_same_step(runs, number):
    run, (_, step) = runs / str(number), list(SIGNALS.values())[number]
    assert json.loads((run / "codes.json").read_text()) == [143, 143]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_ends_both(runs, frozen):
    codes = json.loads((runs / str(len(SIGNALS) + frozen) / "codes.json").read_text())
    assert codes[frozen] == -signal.SIGKILL
    assert codes[1 - frozen] == 1
