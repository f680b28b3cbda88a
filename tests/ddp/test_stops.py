"""Two processes end together when one of them is told to, and when one of them is frozen."""

import multiprocessing
import signal
import socket

import ddp_stops
import pytest
import torch

STEPS = 5


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _codes(folder, signals, timeout: float = 600.0) -> list[int]:
    """How the processes end; the test hangs if they do not."""
    spawn = multiprocessing.get_context("spawn")
    arguments = (str(folder), _free_port(), signals, timeout)
    processes = [spawn.Process(target=ddp_stops.work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


SIGNALS = {
    "the first, in a step": ([(0, signal.SIGTERM, "on_after_backward", 2)], 3),
    "the second, in a step": ([(1, signal.SIGTERM, "on_after_backward", 2)], 3),
    "both, in different hooks": (
        [(0, signal.SIGTERM, "on_train_batch_start", 3), (1, signal.SIGTERM, "on_train_batch_end", 4)],
        4,
    ),
    "the second, in the last step of an epoch": ([(1, signal.SIGTERM, "on_after_backward", STEPS - 1)], STEPS),
    "the second, in validation": ([(1, signal.SIGTERM, "on_validation_batch_end", STEPS)], STEPS),
}


@pytest.mark.parametrize(("signals", "step"), SIGNALS.values(), ids=SIGNALS)
def test_sigterm_ends_both_after_the_same_step(tmp_path, signals, step):
    assert _codes(tmp_path, signals) == [143, 143]
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_ends_both(tmp_path, frozen):
    codes = _codes(tmp_path, [(frozen, signal.SIGSTOP, "on_after_backward", 2)], timeout=5.0)
    assert codes[frozen] == -signal.SIGKILL
    assert codes[1 - frozen] == 1
