"""The data module over any corpus: split × task × fraction, and the phantom in the corpus's layout."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from medvlp.datamodules.base import RadiographDataModule, Split
from medvlp.datasets.base import Dropped, RadiographDataset, Target, dropped_by_reason
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.errors import ConfigError, DataError, TooManySkippedError
from medvlp.phantom.model import PhantomSpec
from medvlp.phantom.progress import write_with_progress
from medvlp.phantom.truth import in_phantom, is_complete_tree, is_interrupted_tree
from medvlp.splits import FRACTION_RULES, Part, SplitInput, draw_fraction, make_split, split_names
from medvlp.splits import Split as CorpusSplit

_TARGETS: dict[str, tuple[Target, ...]] = {
    "pairs": (),
    "classification": (),
    "segmentation": ("mask",),
    "detection": ("boxes",),
    "grounding": ("boxes", "mask"),
}


class CorpusDataModule(RadiographDataModule):
    """What the data modules of the corpora share.

    Args:
        corpus: the corpus, not yet read.
        task: what the samples are for: "pairs", "classification", "segmentation", "detection" or "grounding".
        split: name of a split, see medvlp.splits; None takes the corpus's default.
        split_seed: seed of the splits that are ours; published ones ignore it.
        split_lists: folder with the list files of splits that only their authors can give.
        check_split: a published split must have its published counts (phantoms are never held to them).
        fraction_rule: how a fraction of the training split is drawn, see medvlp.splits.FRACTION_RULES.
        phantom: if given, a phantom of this description is written at the root unless it is there already.
        **kwargs: of :class:`~medvlp.datamodules.base.RadiographDataModule`.

    Raises:
        ConfigError: the labels do not allow the task, or a name is unknown.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        task: Task,
        split: str | None = None,
        split_seed: int = 0,
        split_lists: str | None = None,
        check_split: bool = True,
        fraction_rule: str = "nested",
        phantom: PhantomSpec | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        corpus.require_task(task)
        names = split_names(corpus.name)
        if split is not None and split not in names:
            raise ConfigError(f'{corpus.title} has no split "{split}"; it has {", ".join(names)}')
        if fraction_rule not in FRACTION_RULES:
            raise ConfigError(f'there is no fraction rule "{fraction_rule}"; there are {", ".join(FRACTION_RULES)}')
        self.corpus = corpus
        self.task = task
        self.split = split or names[0]
        self.split_seed = split_seed
        self.split_lists = split_lists
        self.check_split = check_split
        self.fraction_rule = fraction_rule
        self.phantom = phantom
        self.targets = _TARGETS[task]
        self.cache_name = corpus.name
        self.image_root = corpus.root
        self._records: Records | None = None
        self._input: SplitInput | None = None
        self._split: CorpusSplit | None = None
        # the reports of a corpus are broken when they are for pairs
        corpus.on_error = self.on_error

    def prepare_data(self) -> None:
        """Write the phantom, if one is asked for and not there yet (one process per machine calls this).

        Of several runs that want it one writes and the others wait; what a killed run has left of it is written anew.

        Raises:
            DataError: root holds something else, such as a phantom of another description.
        """
        if self.phantom is None:
            return
        layout, root = self.corpus.name, Path(self.corpus.root)
        if is_complete_tree(root, layout, self.phantom):
            return
        # a process more costs seconds of imports: not for a handful of studies
        workers = max(1, min(os.cpu_count() or 1, 4, self.phantom.studies // 250))
        root.parent.mkdir(parents=True, exist_ok=True)
        lock = root.parent / f".{root.name}.lock"
        with FileLock(lock):
            left = is_interrupted_tree(root, layout, self.phantom)
            # a tree that another run has finished meanwhile is left as it is
            write_with_progress(layout, root, self.phantom, workers=workers, overwrite=left)
        # whoever still waits for it, or makes another, finds the tree complete
        lock.unlink(missing_ok=True)

    @property
    def records(self) -> Records:
        """All records of the corpus for the task, over all splits; indexed once.

        Raises:
            TooManySkippedError: more broken items than ``max_skipped`` allows.
        """
        if self._records is None:
            records = self.corpus.records(self.task)
            broken = int(records.dropped["broken"].sum())
            listed = len(records) + broken
            if broken > self.max_skipped * listed:
                raise TooManySkippedError(
                    f"{broken} of the {listed} items of {self.corpus.root} cannot be used"
                    f" ({dropped_by_reason(records.dropped)}), more than max_skipped: {self.max_skipped} allows;"
                    f" look at: medvlp doctor {self.corpus.name} {self.corpus.root}"
                )
            self._records = records
        return self._records

    @property
    def split_result(self) -> CorpusSplit:
        """The split, with counts, hashes and leaks; its ``digest`` belongs into every result.

        Raises:
            DataError: a published split does not have its published counts, and ``check_split`` is on.
        """
        if self._split is None:
            self._input = self.corpus.listing()
            self._split = make_split(
                self.corpus.name,
                self.split,
                self._input,
                seed=self.split_seed,
                lists=self.split_lists,
                strict=self.check_split and not self.corpus.is_phantom,
            )
        return self._split

    def describe(self) -> dict[str, Any]:
        """As the base class says, with the split's name and hash and whether this is a phantom."""
        return {
            **super().describe(),
            "dataset": self.corpus.name,
            "phantom": self.phantom is not None or in_phantom(self.sources()),
            "data_task": self.task,
            "split": self.split,
            "split_sha256": self.split_result.digest,
            "fraction_rule": self.fraction_rule,
        }

    def sources(self) -> list[str | Path]:
        """Override: the folder of the tables, and that of the images where they belong to another corpus."""
        return [self.corpus.root, self.corpus.image_root]

    def read(self, split: Split) -> RadiographDataset:
        """One part of the split; empty if the split has no such part.

        Images of the part that are not among the records (a missing file, an unusable report) were left out when the
        corpus was indexed, and are listed there.

        Raises:
            DataError: the split has no training part.
        """
        result = self.split_result
        if split not in result.parts and split == "train":
            raise DataError(
                f'the split "{self.split}" of {self.corpus.title} has only {", ".join(result.parts)}, no train'
            )
        records = self.records
        dropped = Dropped()
        if split not in result.parts:
            table = records.table.slice(0, 0)
        else:
            chosen = self._chosen(result.parts[split])
            before = records.take(chosen)
            table = self.corpus.after_split(before)
            gone = np.flatnonzero(~pd.Index(before.column("id").to_pylist()).isin(table.column("id").to_pylist()))
            ids = before.column("id").take(gone).to_pylist()
            dropped.extend(ids, chosen.records[gone].tolist(), "left out by the corpus's options after the split")
        return RadiographDataset(table, dropped=dropped.frame(), on_error=self.on_error, box_names=records.box_names)

    def _chosen(self, part: Part) -> Part:
        """A part of the listing as a part of the records, in the order of the part."""
        assert self._input is not None
        return self.corpus.chosen(self.records, self._input, part)

    def reduced(self, train: RadiographDataset) -> RadiographDataset:
        """The share of the training split that ``fraction`` and ``fraction_rule`` ask for."""
        part = self.split_result.parts["train"]
        assert self._input is not None
        rule, lists = self.fraction_rule, self.split_lists
        keep = draw_fraction(rule, self.fraction, self._input, part, seed=self.seed, lists=lists)
        chosen = self._input.ids[part.records[keep]]
        records = self.records
        keys = pd.Series(self.corpus.split_keys(records), index=records.column("id"))
        return train.subset(pd.Index(keys[train.ids]).isin(chosen))

    @property
    def skipped_at_index(self) -> pd.DataFrame:
        """Everything left out while indexing, with columns split ("" before the split), id, row, reason and broken."""
        after = super().skipped_at_index
        if self._records is None:
            return after
        before = self._records.dropped.assign(split="")[["split", "id", "row", "reason", "broken"]]
        return pd.concat([before, after], ignore_index=True) if len(after) else before
