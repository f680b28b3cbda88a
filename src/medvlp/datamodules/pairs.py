"""Any table of images and texts for pre-training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp.datamodules.base import RadiographDataModule, Split
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.pairs import read_pairs
from medvlp.errors import check_range


class PairsDataModule(RadiographDataModule):
    """Pairs listed in a CSV, TSV or Parquet file.

    Args:
        table: the file.
        image_root: folder of the images; None takes the folder of the table.
        image_column: column of image paths; an extension may be missing.
        text_column: column of texts.
        id_column: column of ids; None takes the image path.
        split_column: column with train / validate / test; None divides by a hash.
        group_column: column whose equal values stay together (patients).
        label_columns: columns of numbers; blank is unknown.
        val_fraction: share of the validation split if there is no split_column.
        test_fraction: share of the test split if there is no split_column.
        encoding: of CSV and TSV files.
        sep: column separator of CSV files.
        min_tokens: texts with fewer words are left out.
        **kwargs: of :class:`~medvlp.datamodules.base.RadiographDataModule`.
    """

    if_empty = "set split_column, or val_fraction and test_fraction (of which test_fraction is 0 by default)"

    def __init__(
        self,
        table: str,
        *,
        image_root: str | None = None,
        image_column: str = "image",
        text_column: str = "text",
        id_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        label_columns: Sequence[str] = (),
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        encoding: str = "utf-8",
        sep: str = ",",
        min_tokens: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("[0, 1]", val_fraction=val_fraction, test_fraction=test_fraction, both=val_fraction + test_fraction)
        check_range("[0, inf)", min_tokens=min_tokens)
        self.table = table
        self.image_root = image_root
        self.image_column = image_column
        self.text_column = text_column
        self.id_column = id_column
        self.split_column = split_column
        self.group_column = group_column
        self.label_columns = tuple(label_columns)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.encoding = encoding
        self.sep = sep
        self.min_tokens = min_tokens

    def read(self, split: Split) -> RadiographDataset:
        """Index one split."""
        return read_pairs(
            self.table,
            image_column=self.image_column,
            text_column=self.text_column,
            image_root=self.image_root,
            id_column=self.id_column,
            split_column=self.split_column,
            group_column=self.group_column,
            label_columns=self.label_columns,
            encoding=self.encoding,
            sep=self.sep,
            split=split,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
            min_tokens=self.min_tokens,
            on_error=self.on_error,
        )

    def sources(self) -> list[str | Path]:
        """Override: the table, the folder of the images, and those of some hundred images: paths may be absolute."""
        parts = [part for part in (self.train_set, self.val_set, self.test_set) if part is not None]
        images = [path for part in parts for path in part.table.column("image").to_pylist()]
        folders = list(dict.fromkeys(os.path.dirname(path) for path in images))
        return [self.table, *super().sources(), *folders[:: 1 + len(folders) // 500]]
