"""COVIDx, real or as a phantom."""

from typing import Any, Literal

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets.covidx import COVIDx


class COVIDxDataModule(CorpusDataModule):
    """COVIDx: COVID-19, pneumonia and normal, or COVID-19 against the rest.

    Args:
        root: folder with the lists and the folders train and test, or where the phantom is (to be) written.
        version: name of the lists, such as "COVIDx9A"; "kaggle" stands for train.txt, test.txt and val.txt.
        task: "classification".
        split: a name of medvlp.splits; None takes the default.
        classes: "three", or "binary": COVID-19 against the rest.
        **kwargs: of :class:`~medvlp.datamodules.corpus.CorpusDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        version: str,
        task: Literal["classification"] = "classification",
        split: str | None = None,
        classes: Literal["three", "binary"] = "three",
        **kwargs: Any,
    ) -> None:
        super().__init__(COVIDx(root, version=version, classes=classes), task=task, split=split, **kwargs)
