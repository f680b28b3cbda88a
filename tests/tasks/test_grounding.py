"""Grounding as a task: oracles and priors, chosen thresholds, and what bad input gives."""

import json

import pandas as pd
import pytest
import torch
from evaluators import checkpoint, phantom
from helpers import SIZE, image_config, trainer
from PIL import Image

from medvlp.datamodules.ms_cxr import MSCXRDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.datamodules.siim import SIIMDataModule
from medvlp.errors import ConfigError, DataError, NotSupportedError
from medvlp.methods.base import PretrainModule
from medvlp.methods.g2d.module import G2D
from medvlp.metrics.samples import Samples
from medvlp.results import read_rows
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.grounding import PROTOCOLS, Grounding


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounding")
    made = {name: phantom(name, folder / name, 80) for name in ("siim", "ms_cxr", "rsna")}
    return {**made, "g2d": checkpoint(folder / "g2d.ckpt")}


OPTIONS = {"task": "grounding", "transform": "checkpoint", "image_size": SIZE, "eval_batch_size": 8}


def siim(places, **changes):
    return SIIMDataModule(places["siim"], **{**OPTIONS, "split": "clean", **changes})


def ms_cxr(places, **changes):
    return MSCXRDataModule(places["ms_cxr"], **{**OPTIONS, "split": "official", **changes})


def task(places, **changes):
    return Grounding(EncoderSource(checkpoint=places["g2d"]), **{"image_size": SIZE, "resamples": 30, **changes})


def run(model, data, folder):
    tester = trainer(folder)
    tester.test(model, datamodule=data, verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in tester.callback_metrics.items()}


def instead(model, monkeypatch, heat):
    """Puts other heatmaps in the place of the method's: of a function of the batch's masks."""
    masks = {}
    category = model._category

    def keep(batch):
        masks["now"] = batch["mask"][:, 0]
        return category(batch)

    monkeypatch.setattr(model, "_category", keep)
    monkeypatch.setattr(model, "heatmaps", lambda images, phrases: model._scaled(heat(masks["now"])))
    return model


@pytest.mark.parametrize("module", [siim, ms_cxr])
def test_the_truth_is_perfect(places, tmp_path, monkeypatch, module):
    found = run(instead(task(places), monkeypatch, lambda mask: mask), module(places), tmp_path)
    for name in ("iou", "dice", "recall", "precision", "pointing_game", "pointing_medklip", "pixel_ap"):
        assert found[name] == pytest.approx(1), name
    assert found["gain_over_centre/iou"] == pytest.approx(1 - found["prior_centre/iou"])
    assert found["gain_over_mean_box/iou"] > 0
    if module is ms_cxr:
        assert found["iou_category"] == found["iou/Cardiomegaly"] == pytest.approx(1)


def test_a_map_that_says_nothing_predicts_nothing(places, tmp_path, monkeypatch):
    model = instead(task(places), monkeypatch, torch.ones_like)
    data = ms_cxr(places)
    found = run(model, data, tmp_path)
    assert found["iou"] == found["dice"] == found["recall"] == found["cnr"] == 0
    area = torch.stack([data.test_set[i]["mask"].mean() for i in range(len(data.test_set))]).mean()
    assert found["pixel_ap"] == pytest.approx(float(area), abs=1e-5)
    assert found["pointing_game"] == pytest.approx(float(area), abs=1e-5)


def test_rows_predictions_and_figure(places, tmp_path):
    model, data = task(places), ms_cxr(places)
    found = run(model, data, tmp_path)
    rows = {row["metric"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert set(rows) == set(found)
    assert rows["iou"]["task"] == "grounding"
    assert rows["gain_over_centre/iou"]["low"] <= found["gain_over_centre/iou"] <= rows["gain_over_centre/iou"]["high"]
    for prior in ("centre", "mean_box"):
        for name in ("iou", "dice", "cnr", "pixel_ap", "iou_category"):
            gain = found[name] - found[f"prior_{prior}/{name}"]
            assert found[f"gain_over_{prior}/{name}"] == pytest.approx(gain, abs=1e-6)
    assert {name for name in rows if name.startswith("iou/")} >= {"iou/Cardiomegaly", "iou/Edema"}
    notes = rows["iou"]["notes"]
    assert notes["without_mask"] == 0
    assert set(notes["thresholds"]) == {"method", "centre", "mean_box"}
    assert notes["thresholds_from"] == "validation, best IoU"
    table = pd.read_parquet(tmp_path / rows["iou"]["predictions"])
    assert len(table) == len(data.test_set)
    assert float(model.measures(Samples.from_frame(table))["iou"]) == pytest.approx(found["iou"])
    with Image.open(tmp_path / "figures" / "grounding.png") as figure:
        assert min(figure.size) > 100


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_protocol_runs(places, tmp_path, protocol):
    found = run(task(places, protocol=protocol), siim(places), tmp_path)
    assert 0 <= found["pixel_ap"] <= 1
    assert not any("_category" in name or "Pneumothorax" in name for name in found)
    if protocol in ("biovil", "maco"):
        assert found["miou"] == pytest.approx(sum(found[f"iou@{t}"] for t in (0.1, 0.2, 0.3, 0.4, 0.5)) / 5)
        assert "prior_centre/miou" in found
    else:
        assert "iou" in found
        assert not any("@" in name for name in found)


def test_the_threshold_is_the_best_on_the_validation_part(places, tmp_path):
    model, data = task(places, priors=[]), siim(places)
    run(model, data, tmp_path)
    chosen = model._chosen[""][0]
    values = {}
    for threshold in model._candidates:
        fixed = task(places, priors=[], thresholds=[threshold], resamples=0)
        tester = trainer(tmp_path / "v")
        tester.validate(fixed, datamodule=siim(places), verbose=False)
        values[threshold] = float(tester.callback_metrics["val/iou"])
        if len(values) > 12:  # a third of the candidates, and the chosen one
            break
    fixed = task(places, priors=[], thresholds=[chosen], resamples=0)
    tester = trainer(tmp_path / "w")
    tester.validate(fixed, datamodule=siim(places), verbose=False)
    assert float(tester.callback_metrics["val/iou"]) >= max(values.values())


def test_validation_alone_chooses_too(places, tmp_path):
    model = task(places)
    tester = trainer(tmp_path)
    tester.validate(model, datamodule=siim(places), verbose=False)
    assert 0 <= float(tester.callback_metrics["val/iou"]) <= 1
    assert set(model._chosen) == {"", "centre", "mean_box"}
    assert "val/prior_centre/iou" not in tester.callback_metrics


def test_without_a_validation_part(places, tmp_path):
    data = ms_cxr(places, split="all")
    with pytest.raises(DataError, match="no validation part to choose a threshold on"):
        run(task(places, protocol="g2d"), data, tmp_path)
    found = run(task(places, protocol="g2d", thresholds=[0.1]), data, tmp_path)
    # nor is there a part to take a mean box from
    assert not any("mean_box" in name for name in found)
    default = task(places)
    run(default, data, tmp_path)
    assert default._chosen[""] == (0.5,)


def test_the_mean_box_is_the_mean_of_the_training_masks_of_a_category(places, tmp_path):
    model, data = task(places), ms_cxr(places)
    run(model, data, tmp_path)
    data.setup("fit")
    training = [data.train_set[i] for i in range(len(data.train_set))]
    for place, name in enumerate(data.label_names):
        masks = [sample["mask"][0] for sample in training if sample["label"][place] == 1]
        everything = [sample["mask"][0] for sample in training]
        torch.testing.assert_close(model._priors["mean_box"][place], torch.stack(masks or everything).mean(0), msg=name)


def test_images_without_a_mask_do_not_count(places, tmp_path, monkeypatch):
    model = instead(task(places), monkeypatch, lambda mask: mask)
    columns = model.columns

    def without_first(batch):
        return columns({**batch, "mask": batch["mask"] * (batch["index"] != 0)[:, None, None, None]})

    monkeypatch.setattr(model, "columns", without_first)
    found = run(model, siim(places), tmp_path)
    assert found["iou"] == 1
    assert read_rows(tmp_path / "results.jsonl")[0]["notes"]["without_mask"] == 1
    nothing = instead(task(places, thresholds=[0.5]), monkeypatch, lambda mask: mask)
    columns_of_nothing = nothing.columns
    monkeypatch.setattr(nothing, "columns", lambda batch: columns_of_nothing({**batch, "mask": batch["mask"] * 0}))
    found = run(nothing, siim(places), tmp_path / "nothing")
    assert found["iou"] != found["iou"]


def test_prompts_stand_for_classes(places, tmp_path, monkeypatch):
    model, data = task(places, prompts="phantom"), siim(places)
    asked = []
    embed_text = model.method.embed_text
    monkeypatch.setattr(model.method, "embed_text", lambda texts: asked.extend(texts) or embed_text(texts))
    run(model, data, tmp_path)
    assert "Small left apical pneumothorax." in asked
    assert "Pneumothorax" not in asked
    assert len(asked) == len(set(asked))
    rsna = RSNADataModule(places["rsna"], **OPTIONS, split="clean")
    biovil = task(places, protocol="biovil", priors=[])
    run(biovil, rsna, tmp_path / "rsna")
    assert biovil.prompt_set.name == "biovil_rsna"
    with pytest.raises(ConfigError, match="'Pneumothorax' has no prompts in biovil_rsna"):
        run(task(places, prompts="biovil_rsna"), data, tmp_path)


def test_what_a_phrase_shares_with_every_report_can_be_taken_off(places, tmp_path):
    model = task(places, against=["No acute process.", "Clear lungs."])
    model.categories = ["Edema"]
    batch = {"text": ["Hazy lungs.", "Edema"], "label": torch.ones(2, 1)}
    embed = model.method.embed_text
    normal = torch.nn.functional.normalize(embed(["No acute process.", "Clear lungs."]).mean(0), dim=-1)
    phrases = model.phrase_vectors(batch)
    torch.testing.assert_close(phrases, embed(batch["text"]) - normal)
    images = torch.rand(2, 3, SIZE, SIZE)
    model.scale = "none"
    difference = torch.einsum("bdhw,bd->bhw", model.method.embed_patches(images), phrases)
    from medvlp.scoring.heatmaps import upsample

    torch.testing.assert_close(model.heatmaps(images, phrases), upsample(difference, SIZE))
    found = run(task(places, prompts="phantom", against="negatives"), siim(places), tmp_path)
    assert 0 <= found["iou"] <= 1
    for change, message in (
        ({"against": "nothing"}, "unknown against 'nothing'"),
        ({"against": "negatives"}, "needs a prompt set with negative prompts"),
        ({"against": "negatives", "prompts": "kad"}, "needs a prompt set with negative prompts"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(task(places, **change), siim(places), tmp_path)
    with pytest.raises(DataError, match="against: text 0 of 1 is empty"):
        task(places, against=[" "])


def test_phrases_are_those_of_the_data(places):
    model, data = task(places), ms_cxr(places)
    data.trainer = None
    model.categories = ["Edema", "Mass"]
    texts = ["Hazy lungs.", "Mass", "Nothing of both."]
    batch = {"text": texts, "label": torch.tensor([[1.0, 0], [1, 0], [0, 0]])}
    torch.testing.assert_close(model.phrase_vectors(batch), model.method.embed_text(texts))
    assert model._category(batch).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="phrase 1 of 2 is empty"):
        model.phrase_vectors({"text": ["Edema", " "], "label": batch["label"][:2]})


def test_unnormalised_patches_and_their_weights(places, tmp_path, monkeypatch):
    path = checkpoint(
        tmp_path / "maco.ckpt",
        "maco",
        image=image_config(
            name="vit_tiny_patch16_224", depth=None, options={"embed_dim": 32, "depth": 3, "num_heads": 2}
        ),
        super_resolution=False,
        decoder_dim=32,
        decoder_depth=1,
        decoder_heads=2,
        embed_dim=None,
    )
    model = Grounding(EncoderSource(checkpoint=path), "maco", image_size=SIZE, resamples=0, priors=[])
    images, phrases = torch.rand(2, 3, SIZE, SIZE), torch.randn(2, 32)
    weights = torch.tensor([[0.7, 0.1], [0.1, 0.1]])
    monkeypatch.setattr(model.method, "patch_weights", lambda: weights)
    found = model.heatmaps(images, phrases)
    from medvlp.scoring.heatmaps import min_max, smooth, upsample

    raw = torch.einsum("bdhw,bd->bhw", model.method.encode_patches(images), phrases) * weights
    torch.testing.assert_close(found, min_max(upsample(smooth(raw, 1.5), SIZE), -1, 1), atol=1e-4, rtol=1e-4)
    run(model, siim(places), tmp_path)


def test_what_cannot_be_asked(places, tmp_path, monkeypatch):
    mute = checkpoint(tmp_path / "random.ckpt", "random", text=None, embed_dim=None)
    with pytest.raises(NotSupportedError, match="random has no text encoder"):
        Grounding(EncoderSource(checkpoint=mute))
    with monkeypatch.context() as patched:
        patched.setattr(G2D, "embed_patches", PretrainModule.embed_patches)
        with pytest.raises(NotSupportedError, match="g2d has no patch embeddings"):
            task(places)
    for change, message in (
        ({"protocol": "glori"}, "unknown grounding protocol 'glori'"),
        ({"priors": ["edge"]}, "unknown prior 'edge'"),
        ({"scale": "log"}, "unknown scale 'log'"),
        ({"sigma": -1.0}, "sigma must be at least 0"),
        ({"protocol": "medklip", "thresholds": []}, "set thresholds"),
    ):
        with pytest.raises(ConfigError, match=message):
            task(places, **change)
    with pytest.raises(ConfigError, match="task to grounding"):
        run(task(places), siim(places, task="classification"), tmp_path)
    assert json.dumps(task(places).settings())
