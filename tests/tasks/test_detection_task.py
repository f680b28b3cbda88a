"""Detection from images to result rows."""

from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from helpers import image_config

from medvlp.datamodules.object_cxr import ObjectCXRDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.errors import ConfigError
from medvlp.metrics.detection import detection_measures
from medvlp.metrics.samples import Samples
from medvlp.results import read_rows
from medvlp.tasks.detection.decode import Detections
from medvlp.tasks.detection.task import Detection
from medvlp.tasks.encoder import EncoderSource, fingerprint

SIDE = 32


def rsna(root, **changes):
    options = {
        "transform": "plain",
        "image_size": SIDE,
        "batch_size": 8,
        "split": "g2d",
        "task": "detection",
        **changes,
    }
    return RSNADataModule(str(root), **options)


def detector(**changes):
    options = {
        "encoder": EncoderSource(image=image_config()),
        "image_size": SIDE,
        "width": 0.0625,
        "resamples": 20,
        "features_dtype": "float32",
        **changes,
    }
    return Detection(**options)


@pytest.fixture(scope="module")
def root(corpora):
    """Of the findings of a tiny phantom few are boxed, so this one is larger."""
    return corpora("rsna", 100)


def test_stored_pyramids_give_what_live_ones_give(root, run_task, tmp_path, monkeypatch):
    """The head sees the very same numbers and boxes, batch for batch."""
    seen: dict[str, list] = {"cached": [], "live": []}
    loss = Detection.loss

    def watched(self, batch):
        levels = self.features(batch)
        seen["cached" if "features" in batch else "live"].append((batch["id"], levels, batch["boxes"]))
        return loss(self, {**batch, "features": levels})

    monkeypatch.setattr(Detection, "loss", watched)
    for features in ("cached", "live"):
        run_task(detector(features=features), rsna(root), epochs=2, folder=tmp_path / features)
    assert len(seen["cached"]) == len(seen["live"]) > 0
    for (ids, levels, boxes), (live_ids, live_levels, live_boxes) in zip(seen["cached"], seen["live"], strict=True):
        assert ids == live_ids
        assert [level.shape[1] for level in levels] == [level.shape[1] for level in live_levels]
        for got, want in zip([*levels, *boxes], [*live_levels, *live_boxes], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_both_numbers_can_be_made_again_from_the_predictions(root, run_task, tmp_path):
    data = rsna(root)
    rows = run_task(detector(), data, epochs=2)
    assert {"map_coco", "map_mgca", "images_mgca", "froc"} <= set(rows)
    row = next(row for row in read_rows(tmp_path / "results.jsonl") if row["metric"] == "map_coco")
    assert (row["task"], row["protocol"], row["dataset"]) == ("detection", "honest", "rsna")
    assert row["samples"] == len(data.test_set), "images without a box count too"
    assert row["notes"]["strides"] == [8, 4, 2]
    samples = Samples.from_frame(pd.read_parquet(tmp_path / row["predictions"]))
    again = detection_measures(samples)
    for name, found in rows.items():
        assert float(again[name]) == pytest.approx(found.value, nan_ok=True), name
    boxes = [len(coordinates) // 4 for coordinates in data.test_set.table.column("boxes").to_pylist()]
    assert samples.ragged["truth"].counts.tolist() == boxes


def test_an_oracle_scores_one_and_an_empty_prediction_nothing(root, run_task, monkeypatch):
    def told(self, outputs, batch):
        boxes, labels = batch["boxes"], batch["box_labels"]
        return {
            "boxes": boxes,
            "scores": [torch.ones(len(b)) for b in boxes],
            "labels": labels,
            "truth": boxes,
            "truth_labels": labels,
        }

    monkeypatch.setattr(Detection, "_columns", told)
    rows = run_task(detector(), rsna(root), epochs=0)
    assert rows["map_coco"].value == rows["map_mgca"].value == rows["froc"].value == 1
    monkeypatch.undo()

    def nothing(self, outputs):
        none = torch.zeros(0)
        return Detections(torch.zeros(0, 4), none, none, none.long(), none.long(), len(outputs[0]))

    monkeypatch.setattr(Detection, "detections", nothing)
    rows = run_task(detector(), rsna(root), epochs=0)
    assert rows["map_coco"].value == rows["froc"].value == rows["images_mgca"].value == 0
    assert rows["map_mgca"].value != rows["map_mgca"].value, "no image is left to score"


def test_mgca_moves_the_batch_norms_alone_and_stores_nothing(root, run_task, tmp_path):
    for protocol, moves in (("honest", False), ("mgca", True)):
        task = detector(protocol=protocol, features_dir=str(tmp_path / protocol))
        before, weight = fingerprint(task.encoder), next(task.encoder.parameters()).detach().clone()
        run_task(task, rsna(root))
        assert (fingerprint(task.encoder) != before) == moves, protocol
        assert torch.equal(next(task.encoder.parameters()), weight)
        assert (tmp_path / protocol).exists() != moves


def test_object_cxr_and_a_transformer(corpora, run_task):
    data = ObjectCXRDataModule(
        str(corpora("object_cxr", 100)),
        task="detection",
        split="official",
        transform="mgca_detection",
        image_size=SIDE,
        batch_size=8,
    )
    encoder = EncoderSource(image=image_config(name="vit_tiny_patch16_224", depth=2, options={"depth": 2}))
    rows = run_task(detector(encoder=encoder, variant="yolov3", nms="plain"), data)
    # three levels of a grid of one stride, on the few images of the part "dev"
    assert rows["map_coco"].notes["strides"] == [32, 16, 8]
    assert rows["map_coco"].samples == len(data.test_set)


@pytest.mark.skipif(find_spec("ultralytics") is None, reason="the detection extra (ultralytics) is not installed")
def test_ultralytics_head(root, run_task):
    rows = run_task(detector(head="ultralytics"), rsna(root))
    assert 0 <= rows["map_coco"].value <= 1


def test_a_split_without_boxes_has_no_number(corpora, run_task):
    data = rsna(corpora("rsna", 100))
    data.setup()
    blank = torch.zeros(0, 4)
    data.test_set._boxes = lambda row, geometry: blank  # type: ignore[method-assign]
    data.test_set._list = lambda name, row: []  # type: ignore[method-assign]
    rows = run_task(detector(features="live"), data, epochs=0)
    assert rows["map_coco"].value != rows["map_coco"].value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "coco"}, "honest, mgca"),
        ({"head": "retina"}, "expected one of: yolov3, ultralytics"),
        ({"variant": "best"}, "official, yolov3"),
        ({"nms": "soft"}, "expected one of: official, plain"),
        ({"min_score": 1.0}, "min_score"),
        ({"max_detections": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_exist(changes, message):
    with pytest.raises(ConfigError, match=message):
        detector(**changes)


def test_data_that_do_not_fit(root, run_task):
    with pytest.raises(ConfigError, match="task: detection"):
        run_task(detector(), rsna(root, task="classification"))
    with pytest.raises(ConfigError, match="image_size"):
        run_task(detector(image_size=48), rsna(root))
    with pytest.raises(ConfigError, match="num_classes"):
        run_task(detector(num_classes=3), rsna(root))
