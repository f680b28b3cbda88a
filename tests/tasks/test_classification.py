"""Linear probes and fine-tuning: what is trained, what is stored, what is reported."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import image_config

from medvlp.datamodules.covidx import COVIDxDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.errors import CheckpointError, ConfigError
from medvlp.metrics.classification import classification_measures
from medvlp.metrics.samples import Samples
from medvlp.results import read_rows
from medvlp.tasks.classification import Classification
from medvlp.tasks.encoder import EncoderSource, TaskEncoder, fingerprint, transplant

SIDE = 32


def rsna(root, **changes):
    options = {"transform": "phantom", "image_size": SIDE, "batch_size": 8, "split": "g2d", **changes}
    return RSNADataModule(str(root), **options)


def probe(**changes):
    options = {"encoder": EncoderSource(image=image_config()), "image_size": SIDE, "resamples": 50, **changes}
    return Classification(**options)


def test_stored_features_give_what_live_ones_give(corpora, run_task, tmp_path):
    """As many views as epochs: the very same training, step for step."""
    root, weights, scores = corpora("rsna"), [], []
    for features in ("cached", "live"):
        torch.manual_seed(0)
        task = probe(protocol="linear_mgca", features=features, views=3)
        run_task(task, rsna(root), epochs=3, folder=tmp_path / features)
        weights.append(task.heads[0][2].weight.detach().clone())
        frame = pd.read_parquet(next((tmp_path / features / "predictions").glob("*.parquet")))
        scores.append(np.stack(frame["score"].tolist()))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_nothing_is_encoded_twice(corpora, run_task, tmp_path, monkeypatch):
    root, seen = corpora("rsna"), []
    extract = Classification.extract
    monkeypatch.setattr(Classification, "extract", lambda self, x: (seen.append(len(x)), extract(self, x))[1])
    data = rsna(root)
    run_task(probe(features_dir=str(tmp_path / "f")), data, epochs=4)
    assert sum(seen) == len(data.train_set) + len(data.val_set) + len(data.test_set)
    seen.clear()
    run_task(probe(features_dir=str(tmp_path / "f"), lrs=[0.1]), rsna(root), epochs=2)
    assert not seen, "another run with the same encoder finds the features"
    run_task(probe(features_dir=str(tmp_path / "f"), encoder=EncoderSource(image=image_config(), seed=1)), rsna(root))
    assert seen, "another encoder does not"


def test_a_frozen_encoder_stays_as_it_is(corpora, run_task):
    for protocol, moves in (("linear", False), ("linear_mgca", False), ("linear_gloria", True), ("finetune_g2d", True)):
        task = probe(protocol=protocol)
        before = fingerprint(task.encoder)
        weight = next(task.encoder.parameters()).detach().clone()
        run_task(task, rsna(corpora("rsna")))
        assert (fingerprint(task.encoder) != before) == moves, protocol
        trained = not torch.equal(next(task.encoder.parameters()), weight)
        assert trained == (protocol == "finetune_g2d"), "GLoRIA's code moves the batch norms alone"


def test_heads_at_several_rates_are_as_if_trained_alone(corpora, run_task, tmp_path):
    together = probe(protocol="linear", lrs=[1e-3, 1e-2], features_dir=str(tmp_path / "f"))
    run_task(together, rsna(corpora("rsna")), epochs=3)
    for number, lr in enumerate([1e-3, 1e-2]):
        alone = probe(protocol="linear", lrs=[lr], features_dir=str(tmp_path / "f"))
        alone.setup_heads(["Pneumonia"])
        alone.heads[0].load_state_dict(_start(together, number))
        run_task(alone, rsna(corpora("rsna")), epochs=3)
        torch.testing.assert_close(alone.heads[0][2].weight, together.heads[number][2].weight)


def _start(task: Classification, number: int) -> dict:
    """The weights that a head of such a task starts from."""
    fresh = probe(protocol="linear", lrs=list(task.lrs))
    fresh.setup_heads(["Pneumonia"])
    return fresh.heads[number].state_dict()


def test_rows_can_be_made_again_from_the_predictions(corpora, run_task, tmp_path):
    task = probe()
    rows = run_task(task, rsna(corpora("rsna")))
    stored = {row["metric"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert stored.keys() == rows.keys()
    row = stored["auroc"]
    assert row["low"] <= row["value"] <= row["high"]
    assert (row["task"], row["protocol"], row["dataset"], row["split"]) == ("classification", "linear", "rsna", "g2d")
    assert len(row["split_sha256"]) == len(row["checkpoint"]) == len(row["config_sha256"]) == 64
    frame = pd.read_parquet(tmp_path / row["predictions"])
    assert len(frame) == row["samples"]
    again = classification_measures(
        Samples.from_frame(frame), names=row["notes"]["classes"], thresholds=torch.tensor(row["notes"]["thresholds"])
    )
    assert float(again["auroc"]) == row["value"]
    assert float(again["f1"]) == pytest.approx(stored["f1"]["value"])


def test_three_classes(corpora, run_task):
    data = COVIDxDataModule(
        str(corpora("covidx", 120)), version="COVIDx9A", transform="plain", image_size=SIDE, batch_size=8
    )
    rows = run_task(probe(labels="multiclass"), data, epochs=2)
    assert 0 <= rows["accuracy"].value <= 1
    assert rows["accuracy"].samples == len(data.test_set)


def test_unknown_labels_count_nowhere():
    task = probe(protocol="linear_mgca")
    logits = torch.tensor([[[0.3, -1.0]], [[2.0, 0.1]]])
    labels = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    expected = -(
        torch.tensor(0.3).sigmoid().log() + torch.tensor(-2.0).sigmoid().log() + torch.tensor(0.1).sigmoid().log()
    )
    torch.testing.assert_close(task.per_head_loss(logits, labels), expected[None] / 3)
    nothing = torch.full_like(labels, torch.nan)
    assert float(task.per_head_loss(logits, nothing)) == 0


def test_a_method_is_probed_with_its_own_preprocessing(corpora, run_task, checkpoints):
    task = Classification(encoder=EncoderSource(checkpoint=checkpoints("g2d")), image_size=SIDE, resamples=0)
    data = rsna(corpora("rsna"), transform="checkpoint")
    rows = run_task(task, data)
    assert (data.transform, data.image_size) == ("plain", SIDE)
    assert rows["auroc"].method == "g2d"
    assert rows["auroc"].low is None


def test_no_checkpoint_no_preprocessing(corpora, run_task):
    with pytest.raises(ConfigError, match="transform: checkpoint"):
        run_task(probe(), rsna(corpora("rsna"), transform="checkpoint"))


def test_another_architecture_is_named_weight_by_weight(checkpoints):
    with pytest.raises(CheckpointError, match=r"min_match.*matched.*missing"):
        TaskEncoder(EncoderSource(checkpoint=checkpoints("g2d"), image=image_config(name="resnet18")), SIDE)
    source = EncoderSource(checkpoint=checkpoints("g2d"), image=image_config(depth=3), min_match=0.0)
    audit = TaskEncoder(source, SIDE).audit
    assert audit.matched
    assert audit.missing
    assert 0 < audit.share < 1


def test_transplant_interpolates_positions():
    vit = {"name": "vit_tiny_patch16_224", "depth": None, "options": {"embed_dim": 32, "depth": 3, "num_heads": 2}}
    small, large = (
        TaskEncoder(EncoderSource(image=image_config(**vit)), side, dense=True).trunk for side in (SIDE, 2 * SIDE)
    )
    audit = transplant(small, large)
    assert audit.share == 1
    assert "2×2 to 4×4" in audit.notes[0]


def test_bad_settings():
    with pytest.raises(ConfigError, match="no encoder"):
        Classification()
    with pytest.raises(ConfigError, match="unknown classification protocol 'lin'"):
        probe(protocol="lin")
    with pytest.raises(ConfigError, match="several learning rates"):
        probe(protocol="finetune_g2d", lrs=[0.1, 0.2])
    with pytest.raises(ConfigError, match="class token"):
        probe(pool="token").encoder.pooled(torch.zeros(1, 3, SIDE, SIDE), "token")


def test_a_head_of_another_encoder_is_refused(corpora, run_task, tmp_path, checkpoints):
    task = probe()
    run_task(task, rsna(corpora("rsna")))
    checkpoint: dict = {"callbacks": {}}
    task.on_save_checkpoint(checkpoint)
    other = probe(encoder=EncoderSource(image=image_config(), seed=3))
    with pytest.raises(CheckpointError, match="another encoder"):
        other.on_load_checkpoint(checkpoint)


def test_a_fraction_without_a_positive_is_said(corpora, run_task):
    """The loss is defined, the metric is of what the test part holds."""
    data = rsna(corpora("rsna"), fraction=0.25, batch_size=2)
    assert run_task(probe(), data)["classes_absent"].value in (0, 1)
