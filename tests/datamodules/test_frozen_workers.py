"""A loader process that is frozen ends the run with an error, and is itself ended."""

import multiprocessing
import os
import signal

import pytest
from torch.utils.data import Dataset

from medvlp.datamodules.sampler import PlainErrorLoader
from medvlp.errors import DataError


class _Freezing(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return index


@pytest.mark.parametrize("workers", [1, 2])
def test_a_frozen_loader_process_is_an_error(workers):
    before = set(multiprocessing.active_children())
    loader = PlainErrorLoader(_Freezing(), num_workers=workers, persistent_workers=True, patience=1.0)
    with pytest.raises(DataError, match=r"loader_timeout"):
        list(loader)
    started = set(multiprocessing.active_children()) - before
    for process in started:  # would wait for ever for one that is still frozen
        process.join()
