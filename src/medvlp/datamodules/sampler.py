"""A sampler and a loader that resume in the middle of an epoch."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlp.errors import DataError, MedVLPError
from medvlp.seeding import derive_seed


class ResumableSampler(DistributedSampler[Any]):
    """Yields (index, epoch) tuples in an order that depends on (seed, epoch) alone.

    All ranks draw the same permutation of the whole dataset, and rank r of W takes the elements r, r + W, …; so
    step k of W ranks with b samples each sees the same samples as step k of one rank with W·b samples. What does
    not divide by W is dropped (other samples each epoch).

    Attributes:
        start: samples of the current epoch that this rank has already consumed.
        stop: samples of an epoch that this rank uses; None uses all.
        count: samples still to be yielded; beyond the end of the epoch, the next epoch's order follows. None
            yields up to the end of the epoch.
    """

    def __init__(
        self, dataset: Dataset[Any], num_replicas: int = 1, rank: int = 0, seed: int = 0, shuffle: bool = True
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed, drop_last=True)
        self.start = 0
        self.stop: int | None = None
        self.count: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch (Lightning calls this before each epoch)."""
        super().set_epoch(epoch)
        self.start = 0
        self.stop = None
        self.count = None

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank, wherever ``start`` is: the trainer counts whole epochs."""
        return len(self.dataset) // self.num_replicas  # type: ignore[arg-type]

    def order(self, epoch: int) -> torch.Tensor:
        """Indices of this rank in ``epoch``: int64 (len(self),)."""
        size = len(self.dataset)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        indices = torch.randperm(size, generator=generator) if self.shuffle else torch.arange(size)
        return indices[self.rank : len(self) * self.num_replicas : self.num_replicas]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = self.epoch, self.start
        stop = len(self) if self.stop is None else min(self.stop, len(self))
        left = stop - start if self.count is None else self.count
        while left > 0 and stop > 0:
            indices = self.order(epoch)[start:stop][:left].tolist()
            for index in indices:
                yield index, epoch
            left -= len(indices)
            epoch, start = epoch + 1, 0


Position = Callable[[], "tuple[int, int, int, int] | None"]


class _OnFirstUse:
    """An iterator that is created when its first element is asked for."""

    def __init__(self, create: Callable[[], Iterator[Any]], patience: float = 0) -> None:
        self._create: Callable[[], Iterator[Any]] | None = create
        self._patience = patience
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> "_OnFirstUse":
        return self

    def __next__(self) -> Any:
        if self._create is not None:
            self._iterator, self._create = self._create(), None
        assert self._iterator is not None
        workers, hung = getattr(self._iterator, "_workers", []), threading.Event()

        def end() -> None:
            hung.set()
            for worker in workers:
                worker.kill()

        # torch's own timeout does not cover a process that is frozen while handing over a batch.
        timer = threading.Timer(self._patience, end)
        timer.daemon = True
        if workers and self._patience:
            timer.start()
        try:
            return next(self._iterator)
        except MedVLPError as error:
            plain = _without_traceback(error)
            if plain is error:
                raise
            raise plain from error
        except (RuntimeError, OSError, EOFError) as error:
            if not hung.is_set():
                raise
            raise DataError(
                f"no batch from {len(workers)} loader processes in {self._patience:g} s: one is frozen, or the disk "
                "does not answer; data.loader_timeout is the limit"
            ) from error
        finally:
            timer.cancel()


def _without_traceback(error: MedVLPError) -> MedVLPError:
    """The error as the worker raised it. torch puts the worker's traceback into the text of the error it passes on."""
    text = str(error)
    if not text.startswith("Caught "):
        return error
    last = text.strip().splitlines()[-1]
    return type(error)(last.partition(f"{type(error).__name__}: ")[2] or last)


class PlainErrorLoader(DataLoader[Any]):
    """A loader whose workers report deliberate errors in one line, as they do in the main process.

    ``patience`` are the seconds to wait for a batch of the workers before they are killed, which is an error; 0: no
    limit. Other arguments are those of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, *args: Any, patience: float = 0, **kwargs: Any) -> None:
        self.patience = patience
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return _OnFirstUse(self._begin, self.patience)

    def _begin(self) -> Iterator[Any]:
        return super().__iter__()


class ResumableLoader(PlainErrorLoader):
    """A loader that continues exactly where a restored run stood, even in mid-epoch.

    Lightning creates the iterator of the training loader before it has decided which epoch and batch come next,
    and worker processes would at once prefetch the wrong items. Saving the loader's own state does not help:
    prefetching lets it run ahead of the training steps. So the iterator is created on first use, when the trainer's
    restored counters are settled.

    Args:
        *args: as for :class:`torch.utils.data.DataLoader`, with a :class:`ResumableSampler` as the sampler.
        position: returns (epoch, batches of it already consumed, batches per epoch, batches still to come until
            the trainer's epoch ends), or None to leave the sampler as it stands.
        **kwargs: as above.
    """

    def __init__(self, *args: Any, position: Position | None = None, **kwargs: Any) -> None:
        self.position = position
        super().__init__(*args, **kwargs)

    def _begin(self) -> Iterator[Any]:
        where = self.position() if self.position is not None else None
        if where is not None and isinstance(self.sampler, ResumableSampler):
            assert self.batch_size is not None
            self.sampler.set_epoch(where[0])
            self.sampler.start, self.sampler.stop, self.sampler.count = (n * self.batch_size for n in where[1:])
        return super()._begin()

    def state_dict(self) -> dict[str, int]:
        """What the position is counted in. Having this method also tells Lightning that the loader can resume."""
        return {"batches_per_epoch": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn where the saved position cannot be found again because the epochs have another length now."""
        before = state.get("batches_per_epoch", len(self))
        if before != len(self):
            rank_zero_warn(
                f"an epoch has {len(self)} batches per device now and had {before} in the checkpoint (another batch"
                " size, number of devices, or corpus): training goes on, but not with the very next samples"
            )
