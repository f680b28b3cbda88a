"""Retrieval as a task: selections, oracles, directions, and what bad input gives."""

import pytest
import torch
import torch.nn.functional as F
from evaluators import checkpoint, phantom
from helpers import SIZE, datamodule, trainer

from medvlp.datamodules.chexpert import CheXpertDataModule
from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
from medvlp.errors import ConfigError, DataError, NotSupportedError
from medvlp.metrics.retrieval import recall_statistics, text_groups
from medvlp.results import read_rows
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.retrieval import PROTOCOLS, Retrieval, exclusive_classes, select_per_class

NAMES = ["Edema", "Mass", "No Finding", "Hernia"]
TWO = ["Cardiomegaly", "Pleural Effusion"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    from medvlp.phantom import Difficulty

    made = {
        name: phantom(name, folder / name, 120, findings=tuple(TWO), difficulty=Difficulty(prevalence=4.0))
        for name in ("mimic_cxr", "chexpert")
    }
    return {**made, "g2d": checkpoint(folder / "g2d.ckpt")}


OPTIONS = {"transform": "checkpoint", "image_size": SIZE, "eval_batch_size": 16}


def mimic(places, **changes):
    options = {**OPTIONS, "labels": "truth", "views": ["PA", "AP", ""], "report_policy": "impression", **changes}
    return MIMICCXRDataModule(places["mimic_cxr"], **options)


def chexpert(places, **changes):
    return CheXpertDataModule(places["chexpert"], **{**OPTIONS, "split": "clean", "classes": None, **changes})


def task(places, **changes):
    return Retrieval(EncoderSource(checkpoint=places["g2d"]), **{"image_size": SIZE, "resamples": 30, **changes})


def run(model, data, folder):
    tester = trainer(folder)
    tester.test(model, datamodule=data, verbose=False)
    return {key.removeprefix("test/"): float(value) for key, value in tester.callback_metrics.items()}


def test_recall_of_pairs(places, tmp_path):
    model, data = task(places), mimic(places)
    found = run(model, data, tmp_path)
    assert set(found) == {
        f"{start}recall@{k}/{way}" for start in ("", "chance/") for k in (1, 5, 10) for way in ("i2t", "t2i")
    }
    rows = {row["metric"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert set(rows) == set(found)
    assert rows["recall@5/i2t"]["low"] <= found["recall@5/i2t"] <= rows["recall@5/i2t"]["high"]
    samples = [data.test_set[i] for i in range(len(data.test_set))]
    image = model.method.embed_image(torch.stack([s["image"] for s in samples]))
    texts = [s["text"] for s in samples]
    group = text_groups(texts)
    values, _ = recall_statistics(image, model.method.embed_text(texts), (1, 5, 10), group, group)
    for k, value in zip((1, 5, 10), values.mean(0), strict=True):
        # of an untrained model texts are nearly equal, and ties hang on the rounding of a batch
        assert found[f"recall@{k}/i2t"] == pytest.approx(float(value), abs=0.05)


def test_texts_are_embedded_once(places, tmp_path, monkeypatch):
    model, data = task(places), mimic(places)
    asked = []
    embed_text = model.method.embed_text
    monkeypatch.setattr(model.method, "embed_text", lambda texts: asked.extend(texts) or embed_text(texts))
    run(model, data, tmp_path)
    assert len(asked) == len(set(asked)) == len(set(data.test_set.texts))


def oracle(model, monkeypatch):
    """Embeddings that know text and class."""
    columns = model.columns

    def known(batch):
        found = columns(batch)
        seeds = found["same_text"] if "same_text" in found else found["kind"]
        rows = torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(int(s) + 2)) for s in seeds])
        rows = 0.1 * F.normalize(rows, dim=-1)
        rows[:, :8] += F.one_hot(found["kind"] + 1, 8)
        return {**found, **{name: rows for name in ("image", "text") if name in found}}

    monkeypatch.setattr(model, "columns", known)
    return model


def test_an_oracle_finds_everything(places, tmp_path, monkeypatch):
    pairs = run(oracle(task(places), monkeypatch), mimic(places), tmp_path / "pairs")
    assert pairs["recall@1/i2t"] == pairs["recall@1/t2i"] == 1
    model = oracle(task(places, protocol="gloria_5x200", classes=TWO, precisions=[3]), monkeypatch)
    found = run(model, mimic(places), tmp_path / "classes")
    for way in ("i2t", "t2i", "i2i"):
        assert found[f"precision@3/{way}"] == 1, way
        assert 0 < found[f"chance/precision@3/{way}"] < 1


def test_a_constant_scores_chance(places, tmp_path, monkeypatch):
    model = task(places, protocol="gloria_5x200", classes=TWO, precisions=[3], recalls=[5])
    columns = model.columns

    def same(batch):
        found = columns(batch)
        return {**found, **{name: torch.ones(len(found["kind"]), 4) for name in ("image", "text")}}

    monkeypatch.setattr(model, "columns", same)
    found = run(model, mimic(places), tmp_path)
    for name, value in found.items():
        if not name.startswith("chance/"):
            assert value == pytest.approx(found[f"chance/{name}"], abs=1e-5), name


def test_selection_of_so_many_per_class(places, tmp_path):
    beside = ["No Finding", "Enlarged Cardiomediastinum", "Lung Opacity"]
    data = chexpert(places)
    model = task(
        places,
        protocol="convirt_8x200",
        classes=TWO,
        per_class=3,
        beside=beside,
        precisions=[2],
        prompts="phantom",
    )
    found = run(model, data, tmp_path)
    assert len(data.test_set) == 6
    own = exclusive_classes(data.test_set.labels, list(data.label_names), TWO, beside)
    assert own.bincount().tolist() == [3, 3]
    rows = {row["metric"]: row for row in read_rows(tmp_path / "results.jsonl")}
    assert rows["precision@2/i2i"]["notes"]["images_of_class"] == dict.fromkeys(TWO, 3)
    assert found["chance/precision@2/i2i"] == pytest.approx(2 / 5)
    assert found["chance/precision@2/p2i"] == pytest.approx(1 / 2)
    assert rows["precision@2/i2i"]["low"] is not None
    assert rows["precision@2/p2i"]["low"] is None, "its queries are prompts"
    assert rows["precision@2/p2i"]["notes"]["prompts"]["queries"] == 8
    few = task(places, protocol="convirt_8x200", classes=TWO, per_class=500, beside=beside, prompts="phantom")
    with pytest.raises(DataError, match=r"2×500 needs 500 images that show Cardiomegaly alone, and there are \d+ \("):
        run(few, chexpert(places), tmp_path)


def test_a_class_that_no_image_shows(places, tmp_path):
    model = task(places, protocol="gloria_5x200", classes=["Pleural Effusion", "Hernia"], precisions=[2])
    with pytest.warns(UserWarning, match="no image shows Hernia alone"):
        found = run(model, mimic(places), tmp_path)
    assert found["chance/precision@2/i2t"] == 1


def test_validation(places, tmp_path):
    tester = trainer(tmp_path)
    tester.validate(task(places), datamodule=mimic(places), verbose=False)
    assert 0 <= float(tester.callback_metrics["val/recall@1/i2t"]) <= 1


def test_what_cannot_be_asked(places, tmp_path):
    mute = EncoderSource(checkpoint=checkpoint(tmp_path / "random.ckpt", "random", text=None, embed_dim=None))
    for protocol in PROTOCOLS:
        with pytest.raises(NotSupportedError, match="random has no text encoder"):
            Retrieval(mute, protocol)
    images = Retrieval(
        mute, "gloria_5x200", directions=["i2i"], classes=TWO, precisions=[2], image_size=SIZE, resamples=0
    )
    assert 0 <= run(images, mimic(places), tmp_path)["precision@2/i2i"] <= 1
    for change, message in (
        ({"protocol": "clip"}, "unknown retrieval protocol 'clip'"),
        ({"directions": ["t2t"]}, "unknown direction 't2t'"),
        ({"recalls": [0]}, "at least 1"),
        ({"per_class": 0}, "at least 1"),
        ({"recalls": []}, "nothing to score"),
        ({"directions": ["i2i"]}, "nothing to score"),
        ({"precisions": [5]}, "precision needs classes"),
    ):
        with pytest.raises(ConfigError, match=message):
            task(places, **change)
    with pytest.raises(ConfigError, match="gives no texts"):
        run(task(places), chexpert(places), tmp_path)
    with pytest.raises(ConfigError, match="unknown label 'Zebra'"):
        run(task(places, protocol="gloria_5x200", classes=["Zebra"]), mimic(places), tmp_path)
    with pytest.raises(ConfigError, match="'Hernia' has no prompts in chexpert"):
        run(task(places, protocol="convirt_8x200", classes=["Hernia"]), chexpert(places), tmp_path)


def test_texts_of_a_table(places, tmp_path):
    """Any pairs will do; those of the users' tables have no test part of their own but a validation part."""
    tester = trainer(tmp_path)
    data = datamodule(tmp_path / "pairs", transform="checkpoint")
    tester.validate(task(places), datamodule=data, verbose=False)
    assert "val/recall@1/t2i" in tester.callback_metrics


# ---------------------------------------------------------------- the functions


def test_exclusive_classes():
    nan = torch.nan
    labels = torch.tensor(
        [
            [1.0, 0, 0, 0],  # Edema
            [1, nan, 1, 0],  # blanks are absent, No Finding is unconstrained
            [1, 1, 0, 0],  # two
            [1, 0, 0, -1],  # an uncertain one
            [0, 1, 0, 1],  # another finding besides
            [0, 1, 0, 0],  # Mass
            [0, 0, 1, 0],  # none of the classes
            [-1, 1, 0, 0],
        ]
    )
    assert exclusive_classes(labels, NAMES, ["Edema", "Mass"]).tolist() == [0, 0, -1, -1, -1, 1, -1, -1]
    assert exclusive_classes(labels, NAMES, ["Edema", "Mass"], ["Hernia"])[[1, 3, 4]].tolist() == [-1, 0, 1]
    assert exclusive_classes(labels, NAMES, ["No Finding"]).tolist() == [-1] * 6 + [0, -1]


def test_selection_does_not_depend_on_the_order():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(-1, 2, (60,), generator=generator)
    ids = [f"image{i}" for i in range(60)]
    chosen = select_per_class(classes, ids, 5, ["a", "b"])
    order = torch.randperm(60, generator=generator)
    again = select_per_class(classes[order], [ids[i] for i in order], 5, ["a", "b"])
    assert torch.equal(chosen[order], again)
    assert classes[chosen].bincount().tolist() == [5, 5]
    assert not torch.equal(chosen, select_per_class(classes, ids, 5, ["a", "b"], seed=1))
    with pytest.raises(DataError, match=r"2×40 needs 40 images that show a alone, and there are \d+ .*b \d+\)"):
        select_per_class(classes, ids, 40, ["a", "b"])


def test_equal_texts_are_one_group():
    groups = text_groups(["a", "b", "a", "A"])
    assert groups[0] == groups[2]
    assert len(groups.unique()) == 3
