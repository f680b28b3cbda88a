"""The data module of any corpus: task × split × fraction, and the phantom in the corpus's layout."""

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from filelock import FileLock

from medvlp.console import progress_bar
from medvlp.datamodules.base import RadiographDataModule, Split
from medvlp.datamodules.options import adopt_options, parameters
from medvlp.datasets.base import Dropped, RadiographDataset, Target
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.truth import in_phantom, is_complete_tree, is_interrupted_tree
from medvlp.splits import FRACTION_RULES, SplitInput, draw_fraction, make_split, split_names
from medvlp.splits import Split as CorpusSplit

_TARGETS: dict[str, tuple[Target, ...]] = {
    "pairs": (),
    "classification": (),
    "segmentation": ("mask",),
    "detection": ("boxes",),
    "grounding": ("boxes", "mask"),
}


class CorpusDataModule(RadiographDataModule):
    """Task × split × fraction of a corpus.

    A subclass names the corpus, and takes the corpus's options as its own arguments::

        class MyDataModule(CorpusDataModule, corpus=MyCorpus):
            '''My corpus.'''

    ``split`` in the class header is the default split; without it, the first one of the corpus.

    Args:
        root: folder of the corpus, or where the phantom is written.
        task: what the samples are for: "pairs", "classification", "segmentation", "detection" or "grounding".
        split: name of a split, see medvlp.splits; None takes the corpus's default.
        split_seed: seed of the splits that are ours; published ones ignore it.
        split_lists: folder with the list files of splits that only their authors can give.
        check_split: a published split must have its published counts (phantoms are never held to them).
        fraction_rule: how a fraction of the training split is drawn, see medvlp.splits.FRACTION_RULES.
        phantom: if given, a phantom of this description is written at the root unless it is there already.
        **options: of the corpus and of :class:`~medvlp.datamodules.base.RadiographDataModule`.
    """

    corpus_type: ClassVar[type[Corpus]]
    default_split: ClassVar[str | None] = None

    def __init_subclass__(cls, corpus: type[Corpus] | None = None, split: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if corpus is None:
            return
        cls.corpus_type, cls.default_split = corpus, split
        if "__init__" not in vars(cls):
            task = (Literal[corpus.tasks], corpus.tasks[0])
            adopt_options(cls, corpus, {"task": task, "split": (str if split else str | None, split)})

    def __init__(
        self,
        root: str | Path,
        *,
        task: Task | None = None,
        split: str | None = None,
        split_seed: int = 0,
        split_lists: str | None = None,
        check_split: bool = True,
        fraction_rule: str = "nested",
        phantom: PhantomSpec | None = None,
        **options: Any,
    ) -> None:
        of_corpus, of_base = parameters(self.corpus_type), parameters(RadiographDataModule)
        super().__init__(**{name: v for name, v in options.items() if name in of_base or name not in of_corpus})
        shared = {name: getattr(self, name) for name in of_corpus if name in of_base}
        options = {name: v for name, v in options.items() if name in of_corpus and name not in of_base}
        corpus = self.corpus_type(root, **options, **shared)
        task = task or corpus.tasks[0]
        corpus.require_task(task)
        names = split_names(corpus.name)
        split = split or self.default_split or names[0]
        check_choice(f"split of {corpus.title}", split, names)
        check_choice("fraction_rule", fraction_rule, FRACTION_RULES)
        cleaning = getattr(corpus, "cleaning", "none")
        if task == "pairs" and self.text_sampling != "whole" and cleaning in ("mgca", "gloria"):
            raise ConfigError(
                f"text_sampling: {self.text_sampling} needs sentence ends, which cleaning: {cleaning} removes; use none"
            )
        self.corpus = corpus
        self.task = task
        self.split = split
        self.split_seed = split_seed
        self.split_lists = split_lists
        self.check_split = check_split
        self.fraction_rule = fraction_rule
        self.phantom = phantom
        self.targets = _TARGETS[task]
        self.cache_name = corpus.name
        self.image_root = corpus.root
        self._records: Records | None = None
        self._listing: SplitInput | None = None
        self._split: CorpusSplit | None = None

    def prepare_data(self) -> None:
        """Write the phantom if one is asked for and not there yet; one process per machine calls this.

        Of several runs one writes and the others wait; a tree that a killed run left unfinished is written again.
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
            unfinished = is_interrupted_tree(root, layout, self.phantom)
            # a tree that another run has finished meanwhile is left as it is
            with progress_bar("writing the phantom", self.phantom.studies) as update:
                write_phantom(
                    layout,
                    root,
                    self.phantom,
                    workers=workers,
                    overwrite=unfinished,
                    progress=lambda studies: update(completed=studies),
                )
        # whoever still waits for it, or makes another, finds the tree complete
        lock.unlink(missing_ok=True)

    @property
    def records(self) -> Records:
        """All records of the corpus for the task, over all splits; indexed once."""
        if self._records is None:
            records = self.corpus.records(self.task)
            doctor = f"; look at: medvlp doctor {self.corpus.name} --root {self.corpus.root}"
            self._check_broken(records.dropped, len(records), str(self.corpus.root), doctor)
            self._records = records
        return self._records

    @property
    def listing(self) -> SplitInput:
        """Every image that the released tables list; the splits are drawn from it."""
        if self._listing is None:
            self._listing = self.corpus.listing()
        return self._listing

    @property
    def split_result(self) -> CorpusSplit:
        """The split, with counts, hashes and leaks; its ``digest`` belongs into every result."""
        if self._split is None:
            self._split = make_split(
                self.corpus.name,
                self.split,
                self.listing,
                seed=self.split_seed,
                lists=self.split_lists,
                strict=self.check_split and not self.corpus.is_phantom,
            )
        return self._split

    def describe(self) -> dict[str, Any]:
        """Override: add task, split and fraction rule."""
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
        """Index one part of the split; empty if the split has no such part."""
        parts = self.split_result.parts
        if split not in parts and split == "train":
            raise DataError(f"the split {self.split!r} of {self.corpus.title} has only {', '.join(parts)}, no train")
        records, dropped = self.records, Dropped()
        if split not in parts:
            table = records.table.slice(0, 0)
        else:
            chosen = self.corpus.chosen(records, self.listing, parts[split])
            before = records.take(chosen)
            table = self.corpus.after_split(before)
            removed = np.flatnonzero(~pd.Index(before.column("id").to_pylist()).isin(table.column("id").to_pylist()))
            ids = before.column("id").take(removed).to_pylist()
            dropped.extend(ids, chosen.records[removed].tolist(), "left out by the corpus's options after the split")
        return RadiographDataset(table, dropped=dropped.frame(), on_error=self.on_error, box_names=records.box_names)

    def reduced(self, train: RadiographDataset) -> RadiographDataset:
        """Override: draw the fraction by ``fraction_rule``."""
        part, rule = self.split_result.parts["train"], self.fraction_rule
        keep = draw_fraction(rule, self.fraction, self.listing, part, seed=self.seed, lists=self.split_lists)
        keys = pd.Series(self.corpus.split_keys(self.records), index=self.records.column("id"))
        return train.subset(pd.Index(keys[train.ids]).isin(self.listing.ids[part.records[keep]]))

    @property
    def skipped_at_index(self) -> pd.DataFrame:
        """Override: add what was dropped before the split, with "" as split."""
        after = super().skipped_at_index
        if self._records is None:
            return after
        before = self._records.dropped.assign(split="")[list(after.columns)]
        return pd.concat([before, after], ignore_index=True) if len(after) else before
