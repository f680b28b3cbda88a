"""Any table of images and texts for pre-training."""

import os
from pathlib import Path
from typing import Any

from medvlp.datamodules.base import RadiographDataModule, Split
from medvlp.datamodules.options import adopt_options, parameters
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.pairs import PairTable


class PairsDataModule(RadiographDataModule):
    """Pairs listed in a CSV, TSV or Parquet file."""

    if_empty = "set split_column, or val_fraction and test_fraction (of which test_fraction is 0 by default)"

    def __init__(self, table: str | Path, **options: Any) -> None:
        of_table = parameters(PairTable)
        super().__init__(**{name: value for name, value in options.items() if name not in of_table})
        self.table = PairTable(table, **{name: value for name, value in options.items() if name in of_table})
        self.image_root = self.table.image_root

    def read(self, split: Split) -> RadiographDataset:
        """Index one split."""
        return self.table.read(split, seed=self.seed, on_error=self.on_error)

    def sources(self) -> list[str | Path]:
        """Override: the table, the folder of the images, and those of some hundred images: paths may be absolute."""
        parts = [part for part in (self.train_set, self.val_set, self.test_set) if part is not None]
        images = [path for part in parts for path in part.table.column("image").to_pylist()]
        folders = list(dict.fromkeys(os.path.dirname(path) for path in images))
        return [self.table.table, *super().sources(), *folders[:: 1 + len(folders) // 500]]


adopt_options(PairsDataModule, PairTable)
