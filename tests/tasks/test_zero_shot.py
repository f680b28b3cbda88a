"""Zero-shot classification as a task: what is scored, by which thresholds, and what bad input gives."""

import json
import math

import pandas as pd
import pytest
import torch
from evaluators import checkpoint, phantom
from helpers import trainer

from medvlp.datamodules.chexpert import CheXpertDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.errors import ConfigError, NotSupportedError
from medvlp.metrics.samples import Samples
from medvlp.results import read_rows
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.zero_shot import (
    PROTOCOLS,
    ZeroShotClassification,
    best_class_is_right,
    decisions,
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot")
    made = {"rsna": phantom("rsna", folder / "rsna"), "chexpert": phantom("chexpert", folder / "chexpert", 160)}
    return {**made, "g2d": checkpoint(folder / "g2d.ckpt"), "folder": folder}


def chexpert(places, **changes):
    options = {"split": "clean", "transform": "checkpoint", "image_size": 32, "eval_batch_size": 16, **changes}
    return CheXpertDataModule(places["chexpert"], **options)


def task(places, **changes):
    options = {"prompts": "phantom", "image_size": 32, "resamples": 50, **changes}
    return ZeroShotClassification(EncoderSource(checkpoint=places["g2d"]), **options)


def run(model, data, folder):
    tester = trainer(folder)
    tester.test(model, datamodule=data, verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in tester.callback_metrics.items()}


def oracle(model, monkeypatch, scale=1.0):
    """Lets the labels be the scores."""
    monkeypatch.setattr(
        model,
        "columns",
        lambda batch: {"score": scale * batch["label"][:, model._columns], "label": batch["label"][:, model._columns]},
    )
    return model


def test_scores_are_saved_and_every_metric_has_a_row(places, tmp_path):
    model, data = task(places), chexpert(places)
    found = run(model, data, tmp_path)
    rows = read_rows(tmp_path / "results.jsonl")
    assert {row["metric"] for row in rows} == set(found)
    by = {row["metric"]: row for row in rows}
    assert by["auroc"]["task"] == "zero_shot"
    assert by["auroc"]["protocol"] == "default"
    assert by["auroc"]["low"] <= by["auroc"]["value"] <= by["auroc"]["high"]
    assert by["auroc"]["notes"]["prompts"] == {"name": "phantom", "version": 1}
    assert by["auroc"]["notes"]["thresholds_from"] == "validation, best f1"
    assert {"f1", "accuracy", "f1_medklip", "accuracy_medklip", "classes_absent", "auroc/Edema"} <= set(found)
    table = pd.read_parquet(tmp_path / by["auroc"]["predictions"])
    assert len(table) == len(data.test_set) == by["auroc"]["samples"]
    again = model.measures(Samples.from_frame(table))
    assert float(again["auroc"]) == pytest.approx(found["auroc"])
    assert json.dumps(rows[0]["notes"])


def test_images_and_texts_are_encoded_once(places, tmp_path, monkeypatch):
    model, data = task(places, thresholds="none"), chexpert(places)
    images, texts = [], []
    embed_image, embed_text = model.method.embed_image, model.method.embed_text
    monkeypatch.setattr(model.method, "embed_image", lambda x: images.append(len(x)) or embed_image(x))
    monkeypatch.setattr(model.method, "embed_text", lambda x: texts.extend(x) or embed_text(x))
    run(model, data, tmp_path)
    assert sum(images) == len(data.test_set)
    assert len(texts) == len(set(texts)) == len(model.table.texts)


def test_an_oracle_is_perfect_and_a_constant_is_chance(places, tmp_path, monkeypatch):
    perfect = run(oracle(task(places), monkeypatch), chexpert(places), tmp_path / "a")
    for name in ("auroc", "average_precision", "f1", "accuracy", "f1_medklip"):
        assert perfect[name] == 1, name
    constant = run(oracle(task(places), monkeypatch, 0.0), chexpert(places), tmp_path / "b")
    assert constant["auroc"] == 0.5


@pytest.mark.parametrize("protocol", sorted(set(PROTOCOLS) - {"biovil"}))
def test_every_protocol_runs(places, tmp_path, protocol):
    model = task(places, protocol=protocol, prompts=None)
    found = run(model, chexpert(places), tmp_path)
    assert 0 <= found["auroc"] <= 1
    if PROTOCOLS[protocol].fixed:
        assert {"f1_fixed", "accuracy_fixed"} <= set(found)
    if protocol == "maco":
        assert 0 <= found["f1_weighted"] <= 1
    assert {"f1_medklip", "f1_kad"} <= set(found)
    if PROTOCOLS[protocol].top1:
        assert 0 <= found["top1"] <= 1 or math.isnan(found["top1"])


def test_protocols_take_the_prompts_of_the_corpus(places, tmp_path):
    data = RSNADataModule(places["rsna"], split="clean", transform="checkpoint", image_size=32, eval_batch_size=32)
    for protocol, name in (("maco", "maco_rsna"), ("biovil", "biovil_rsna"), ("cxrclip", "cxrclip_rsna")):
        model = task(places, protocol=protocol, prompts=None)
        found = run(model, data, tmp_path / protocol)
        assert model.prompt_set.name == name
        assert model.names == ["Pneumonia"]
        assert {"auroc", "f1_fixed", "classes_absent"} <= set(found)
        assert "auroc/Pneumonia" not in found


def test_without_a_validation_part_no_threshold_is_chosen(places, tmp_path, monkeypatch):
    monkeypatch.setattr(ZeroShotClassification, "on_validation_part", lambda self: None)
    found = run(task(places), chexpert(places), tmp_path)
    assert "f1" not in found
    assert "f1_medklip" in found
    assert read_rows(tmp_path / "results.jsonl")[0]["notes"]["thresholds"] is None


def test_a_class_without_a_positive_is_counted_and_enters_no_mean(places, tmp_path, monkeypatch):
    found = run(oracle(task(places), monkeypatch), chexpert(places, classes=["Edema", "Fracture"]), tmp_path)
    assert found["classes_absent"] == 1
    assert math.isnan(found["auroc/Fracture"])
    assert math.isnan(found["f1/Fracture"])
    assert found["auroc"] == found["auroc/Edema"] == 1


def test_labels_without_prompts(places, tmp_path):
    data = chexpert(places, classes=["Edema", "Lung Lesion"])
    model = task(places)
    with pytest.warns(UserWarning, match="not scored: Lung Lesion"):
        run(model, data, tmp_path)
    assert model.names == ["Edema"]
    assert model.facts()["labels_without_prompts"] == ["Lung Lesion"]
    with pytest.raises(ConfigError, match="'Lung Lesion' has no prompts"):
        run(task(places, classes=["Lung Lesion", "Edema"]), data, tmp_path)
    with pytest.raises(ConfigError, match="unknown classes 'Hernia'"):
        run(task(places, classes=["Hernia"]), data, tmp_path)
    with pytest.raises(ConfigError, match="none of the labels Lung Lesion has prompts"):
        run(task(places), chexpert(places, classes=["Lung Lesion"]), tmp_path)


def test_a_prompt_file_with_classes_that_no_label_has(places, tmp_path):
    path = tmp_path / "mine.json"
    sides = {"positive": ["edema"], "negative": ["no edema"]}
    path.write_text(json.dumps({"prompts": {"Edema": sides, "Oedema": sides}}))
    model = task(places, prompts=str(path))
    with pytest.warns(UserWarning, match="prompts for Oedema, which match no label"):
        run(model, chexpert(places, classes=["Edema"]), tmp_path)
    moved = path.rename(tmp_path / "moved.json")
    assert task(places, prompts=str(moved)).settings() != task(places).settings()
    path.write_text(moved.read_text())
    assert task(places, prompts=str(moved)).settings() == task(places, prompts=str(path)).settings()


def test_methods_may_score_themselves(places, tmp_path, monkeypatch):
    def own(self, images, prompts):
        return torch.arange(float(len(prompts))).expand(len(images), -1) + images.mean((1, 2, 3))[:, None]

    model = task(places)
    monkeypatch.setattr(type(model.method), "zero_shot_scores", own, raising=False)
    model = task(places, protocol="gloria", prompts=None)
    assert model.own_scores
    run(model, chexpert(places), tmp_path)
    with pytest.raises(ConfigError, match="best, mean, probabilities"):
        run(task(places, own_scores=True, rule="softmax"), chexpert(places), tmp_path)
    monkeypatch.undo()
    assert not task(places, protocol="gloria", prompts=None).own_scores
    with pytest.raises(ConfigError, match="no zero_shot_scores of its own"):
        task(places, own_scores=True)


def test_what_cannot_be_asked(places, tmp_path):
    mute = checkpoint(tmp_path / "random.ckpt", "random", text=None, embed_dim=None)
    with pytest.raises(NotSupportedError, match="random has no text encoder"):
        ZeroShotClassification(EncoderSource(checkpoint=mute))
    with pytest.raises(ConfigError, match="needs a whole method"):
        ZeroShotClassification(None)
    for change, message in (
        ({"protocol": "chexnet"}, "unknown zero-shot protocol 'chexnet'"),
        ({"rule": "softmix"}, "unknown scoring rule"),
        ({"thresholds": "best"}, "unknown thresholds 'best'"),
        ({"temperature": 0.0}, "temperature"),
    ):
        with pytest.raises(ConfigError, match=message):
            task(places, **change)
    with pytest.raises(ConfigError, match="negative prompts"):
        run(task(places, prompts="kad"), chexpert(places), tmp_path)
    with pytest.raises(ConfigError, match="nothing to train: run medvlp test"):
        trainer(tmp_path).fit(task(places), datamodule=chexpert(places))


# ---------------------------------------------------------------- the functions


def test_decisions_against_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    generator = torch.Generator().manual_seed(0)
    decided = torch.rand(50, 3, generator=generator) > 0.4
    labels = (torch.rand(50, 3, generator=generator) > 0.7).float()
    labels[:5, 0] = torch.nan
    labels[:, 2] = 0
    found = decisions(decided, labels, weighted=True)
    for c in range(2):
        known = labels[:, c].isfinite()
        truth, guess = labels[known, c].numpy(), decided[known, c].float().numpy()
        assert float(found["f1"][0, c]) == pytest.approx(f1_score(truth, guess))
        assert float(found["accuracy"][0, c]) == pytest.approx(accuracy_score(truth, guess))
        assert float(found["f1_weighted"][0, c]) == pytest.approx(f1_score(truth, guess, average="weighted"))
    assert found["f1"][0, 2].isnan()


def test_weights_are_repetitions():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(30, 2, generator=generator), (torch.rand(30, 2, generator=generator) > 0.6).float()
    weights = torch.randint(0, 3, (4, 30), generator=generator).float()
    measured = decisions(scores > 0.5, labels, weights, weighted=True)
    for r, counts in enumerate(weights.long()):
        at = torch.repeat_interleave(torch.arange(30), counts)
        alone = decisions(scores[at] > 0.5, labels[at], weighted=True)
        for name, value in alone.items():
            torch.testing.assert_close(measured[name][r], value[0], msg=name)


def test_the_best_class_is_standardised():
    labels = torch.eye(3).repeat(2, 1)
    scores = labels + torch.tensor([0.0, 5.0, 0.0])  # a class that is near everything
    assert best_class_is_right(scores, labels).eq(1).all()
    several = labels.clone()
    several[0, 1] = 1
    several[1, 0] = torch.nan
    assert best_class_is_right(scores, several)[:2].isnan().all()


def test_glorias_words_take_part(places, tmp_path):
    path = checkpoint(tmp_path / "gloria.ckpt", "gloria", text_layers=1)
    model = ZeroShotClassification(EncoderSource(checkpoint=path), "gloria", image_size=32, resamples=0)
    data = chexpert(places)
    assert model.own_scores
    found = run(model, data, tmp_path / "own")
    images = torch.stack([data.test_set[i]["image"] for i in range(3)])
    own = model.method.similarity(images, model.table.texts)[0]
    best = torch.stack([own[:, list(side)].amax(1) for side in model.table.positive], 1)
    table = pd.read_parquet(tmp_path / "own" / read_rows(tmp_path / "own" / "results.jsonl")[0]["predictions"])
    torch.testing.assert_close(Samples.from_frame(table)["score"][:3], best)
    cosines = run(
        ZeroShotClassification(EncoderSource(checkpoint=path), "gloria", own_scores=False, image_size=32, resamples=0),
        data,
        tmp_path / "cosines",
    )
    assert found["auroc"] != cosines["auroc"]
