"""MIMIC-CXR for pre-training, real or as a phantom."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medvlp.datamodules.base import PretrainDataModule, Split
from medvlp.datasets.base import ImageTextDataset
from medvlp.datasets.mimic_cxr import read_mimic_cxr
from medvlp.errors import ConfigError
from medvlp.phantom.model import PhantomSpec


class MIMICCXRDataModule(PretrainDataModule):
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR, or a phantom in the same layout.

    Args:
        root: folder of MIMIC-CXR-JPG, or where the phantom is (to be) written.
        reports_root: folder of MIMIC-CXR with the reports, if they are not under root.
        views: values of ViewPosition to keep; "" or "unknown" stands for a blank one.
        report_policy: which sections: "findings", "impression", "both", "longest", "last_paragraph" or "all".
        cleaning: "none", "mgca" or "g2d_official", see medvlp.io.reports.
        min_tokens: studies with fewer words are left out.
        labels: label table: "chexpert", "negbio", the phantom's exact "truth", or None.
        cache_dir: folder for the parsed reports; it will hold report text.
        phantom: if given, a phantom of this description is written at root unless it is there already.
        batch_size: training pairs per device.
        eval_batch_size: pairs per device in validation and testing; None uses batch_size.
        num_workers: loader processes; 0 loads in the main process.
        image_size: side of the images that the model sees, in pixels.
        transform: a name of medvlp.transforms.TRANSFORMS.
        seed: seed of the sample order, the augmentation and the fraction.
        fraction: share of the training patients, in (0, 1]; smaller shares lie inside larger ones.
        text_sampling: "whole" text, or one random "sentence" of it (ConVIRT).
        on_error: "raise" on the first unreadable item, or "skip": count it and take the next readable one.
        max_skipped: largest share of unreadable items that on_error: skip tolerates.
        pin_memory: page-locked batches, for faster copies to a CUDA device.
    """

    def __init__(
        self,
        root: str,
        *,
        reports_root: str | None = None,
        views: Sequence[str] = ("PA", "AP"),
        report_policy: Literal["findings", "impression", "both", "longest", "last_paragraph", "all"] = "both",
        cleaning: Literal["none", "mgca", "g2d_official"] = "none",
        min_tokens: int = 3,
        labels: Literal["chexpert", "negbio", "truth"] | None = "chexpert",
        cache_dir: str | None = None,
        phantom: PhantomSpec | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        image_size: int = 224,
        transform: str = "g2d_paper",
        seed: int = 0,
        fraction: float = 1.0,
        text_sampling: Literal["whole", "sentence"] = "whole",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: float = 0.05,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            image_size=image_size,
            transform=transform,
            seed=seed,
            fraction=fraction,
            text_sampling=text_sampling,
            on_error=on_error,
            max_skipped=max_skipped,
            pin_memory=pin_memory,
        )
        if text_sampling == "sentence" and cleaning == "mgca":
            raise ConfigError("text_sampling: sentence needs sentence ends, which cleaning: mgca removes; use none")
        self.root = root
        self.reports_root = reports_root
        self.views = tuple(views)
        self.report_policy = report_policy
        self.cleaning = cleaning
        self.min_tokens = min_tokens
        self.labels = labels
        self.cache_dir = cache_dir
        self.phantom = phantom

    def prepare_data(self) -> None:
        """Write the phantom, if one is asked for and not there yet (one process per machine calls this).

        Raises:
            DataError: root holds something else, such as a phantom of another description.
        """
        if self.phantom is not None:
            write_phantom_with_progress(self.root, self.phantom)

    def read(self, split: Split) -> ImageTextDataset:
        """Index one official split."""
        return read_mimic_cxr(
            self.root,
            split=split,
            reports_root=self.reports_root,
            views=self.views,
            report_policy=self.report_policy,
            cleaning=self.cleaning,
            min_tokens=self.min_tokens,
            labels=self.labels,
            cache_dir=self.cache_dir,
            on_error=self.on_error,
        )


def write_phantom_with_progress(root: str | Path, spec: PhantomSpec) -> None:
    """Write a phantom in MIMIC-CXR layout with up to four processes and a progress bar.

    Args:
        root: folder to write into.
        spec: what to write.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from medvlp.phantom import write_phantom

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("writing the phantom", total=spec.studies)

        def show(finished: int) -> None:
            bar.update(task, completed=finished)

        write_phantom("mimic_cxr", root, spec, workers=min(os.cpu_count() or 1, 4), progress=show)
