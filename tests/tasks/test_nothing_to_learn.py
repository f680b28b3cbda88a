"""Training parts without labels, masks, boxes or texts are refused before the first step."""

import numpy as np
import pandas as pd
import pytest
from helpers import image_config, sizes, trainer
from PIL import Image

from medvlp.datamodules.pairs import PairsDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.errors import ConfigError
from medvlp.registry import get_method
from medvlp.tasks.classification import Classification
from medvlp.tasks.detection.task import Detection
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.segmentation import Segmentation

SIZE = {"image_size": 32, "batch_size": 2}


def _labelled(folder, **columns) -> PairsDataModule:
    """Four images for training and two to validate on."""
    names = [f"{i}.png" for i in range(6)]
    for name in names:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / name)
    frame = pd.DataFrame({"image": names, "text": "a text", "split": ["train"] * 4 + ["validate"] * 2, **columns})
    frame.to_csv(folder / "table.csv", index=False)
    return PairsDataModule(
        str(folder / "table.csv"), split_column="split", label_columns=list(columns), transform="plain", **SIZE
    )


def _classification(**options) -> Classification:
    return Classification(EncoderSource(image=image_config()), image_size=32, resamples=0, **options)


def test_labels_that_are_all_blank(tmp_path):
    data = _labelled(tmp_path, a=[None] * 4 + [1, 0], b=[None] * 6)
    with pytest.raises(ConfigError, match=r"no label in the training part: of its 4 images none .* a, b"):
        trainer(tmp_path).fit(_classification(), datamodule=data)


def test_classes_of_which_no_image_knows_all(tmp_path):
    data = _labelled(tmp_path, a=[1, None] * 3, b=[None, 1] * 3)
    with pytest.raises(ConfigError, match="no label in the training part"):
        trainer(tmp_path).fit(_classification(labels="multiclass", lrs=[]), datamodule=data)


def test_one_label_of_two_is_a_warning(tmp_path):
    data = _labelled(tmp_path, a=[0, 1] * 3, b=[None] * 4 + [1, 0])
    with pytest.warns(UserWarning, match="no label in the training part for b:"):
        trainer(tmp_path, max_epochs=1).fit(_classification(), datamodule=data)


@pytest.mark.parametrize(("kind", "column", "said"), [(Segmentation, "shapes", "mask"), (Detection, "boxes", "box")])
def test_annotations_that_are_nowhere(corpora, tmp_path, monkeypatch, kind, column, said):
    data = RSNADataModule(str(corpora("rsna")), task=kind.task, split="g2d", transform="plain", **SIZE)
    read = data.read

    def negative(split):
        dataset = read(split)
        return dataset.subset(np.array([not found for found in dataset.table.column(column).to_pylist()]))

    monkeypatch.setattr(data, "read", negative)
    model = kind(EncoderSource(image=image_config()), image_size=32, resamples=0)
    with pytest.raises(ConfigError, match=f"no {said} in the training part"):
        trainer(tmp_path).fit(model, datamodule=data)


def test_pre_training_without_texts(corpora, tmp_path):
    data = RSNADataModule(str(corpora("rsna")), split="g2d", transform="plain", **SIZE)
    with pytest.raises(ConfigError, match="no text in the training part"):
        trainer(tmp_path).fit(get_method("g2d")(**sizes()), datamodule=data)
