"""What the tasks write can be computed again from it, whatever task and protocol: nothing but rows and Parquet."""

import pytest
from evaluators import checkpoint, phantom
from helpers import SIZE, image_config, trainer

from medvlp.benchmark.resampled import RowError, measures_of, predictions_path, samples_of
from medvlp.benchmark.verify import verify
from medvlp.datamodules.chexpert import CheXpertDataModule
from medvlp.datamodules.covidx import COVIDxDataModule
from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
from medvlp.datamodules.ms_cxr import MSCXRDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.errors import DataError
from medvlp.results import read_rows
from medvlp.tasks.classification import Classification
from medvlp.tasks.detection.task import Detection
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.grounding import Grounding
from medvlp.tasks.retrieval import Retrieval
from medvlp.tasks.segmentation import Segmentation
from medvlp.tasks.zero_shot import ZeroShotClassification

OPTIONS = {"transform": "plain", "image_size": SIZE, "batch_size": 8, "eval_batch_size": 6}
TASK = {"image_size": SIZE, "resamples": 30}
TWO = ["Cardiomegaly", "Pleural Effusion"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recompute")
    layouts = {"rsna": 80, "chexpert": 120, "ms_cxr": 80, "mimic_cxr": 80, "covidx": 80}
    return {name: phantom(name, folder / name, n) for name, n in layouts.items()} | {
        "method": EncoderSource(checkpoint=checkpoint(folder / "g2d.ckpt"))
    }


def _zero_shot(places, protocol):
    model = ZeroShotClassification(places["method"], protocol, prompts="phantom", **TASK)
    return model, CheXpertDataModule(places["chexpert"], split="clean", **OPTIONS)


def _grounding(places, protocol):
    model = Grounding(places["method"], protocol, prompts="phrase", figures=0, **TASK)
    return model, MSCXRDataModule(places["ms_cxr"], task="grounding", split="official", **OPTIONS)


def _retrieval(places, protocol):
    if protocol == "pairs":
        return Retrieval(places["method"], **TASK), MIMICCXRDataModule(
            places["mimic_cxr"], labels="truth", views=["PA", "AP", ""], **OPTIONS
        )
    beside = ["No Finding", "Enlarged Cardiomediastinum", "Lung Opacity"]
    model = Retrieval(
        places["method"], protocol, classes=TWO, precisions=[1, 2], prompts="phantom", beside=beside, **TASK
    )
    return model, CheXpertDataModule(places["chexpert"], split="clean", classes=None, **OPTIONS)


def _classification(places, labels):
    model = Classification(EncoderSource(image=image_config()), labels=labels, **TASK)
    if labels == "multiclass":
        return model, COVIDxDataModule(places["covidx"], version="COVIDx9A", **OPTIONS)
    return model, CheXpertDataModule(places["chexpert"], split="clean", **OPTIONS)


def _segmentation(places, protocol):
    source = EncoderSource(image=image_config(depth=4))
    model = Segmentation(source, protocol, decoder_widths=[16, 8, 8, 8], **TASK)
    return model, RSNADataModule(places["rsna"], task="segmentation", split="g2d", **OPTIONS)


def _detection(places, protocol):
    model = Detection(EncoderSource(image=image_config()), protocol, width=0.0625, **TASK)
    return model, RSNADataModule(places["rsna"], task="detection", split="g2d", **OPTIONS)


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (_zero_shot, "default"),
        (_zero_shot, "maco"),  # F1 at a fixed threshold, and MaCo's
        (_zero_shot, "medclip"),  # the best class
        (_grounding, "default"),  # a threshold each for the method and the priors
        (_grounding, "biovil"),  # five thresholds
        (_retrieval, "pairs"),
        (_retrieval, "convirt_8x200"),  # queries that are prompts
        (_classification, "multilabel"),
        (_classification, "multiclass"),
        (_segmentation, "frozen"),
        (_detection, "honest"),
    ],
)
def test_every_number_comes_again(make, how, places, tmp_path):
    model, data = make(places, how)
    run = trainer(tmp_path, enable_checkpointing=False)
    if model.trains:
        run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    found = verify(tmp_path / "results.jsonl")
    assert found.faults == []
    rows = read_rows(tmp_path / "results.jsonl")
    assert found.checked["values"] == len(rows) > 5
    assert any(row["value"] is not None for row in rows)
    assert set(measures_of(rows[0])(samples_of(rows[0], tmp_path).samples, None)) == {row["metric"] for row in rows}


def test_rows_that_do_not_tell_enough(tmp_path):
    row = {"method": "g2d", "task": "segmentation", "metric": "dice_all", "notes": {"model": {}}, "line": 7}
    with pytest.raises(RowError, match="before facts were recorded: its notes have no 'eval_batch_size'"):
        measures_of(row)
    with pytest.raises(DataError, match="unknown task 'captioning'"):
        measures_of({**row, "task": "captioning"})
    with pytest.raises(DataError, match=r"the row g2d, segmentation, dice_all, line 7 names no predictions"):
        predictions_path(row, tmp_path)
    (tmp_path / "p.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"p\.parquet: not readable as predictions"):
        samples_of({**row, "predictions": "p.parquet"}, tmp_path)
