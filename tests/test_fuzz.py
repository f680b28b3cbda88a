"""Damaged trees: the doctor says so, readers raise nothing but their own errors, and no sample is ever a wrong one."""

import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from damage import DAMAGES, Damage, Tree

from medvlp.datasets import corpus_class
from medvlp.datasets.base import RadiographDataset, Sample
from medvlp.datasets.corpus import Corpus, Records
from medvlp.doctor import examine
from medvlp.errors import MedVLPError, UnreadableItemError
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.model import Difficulty

LAYOUTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mimic_cxr": ("mimic_cxr", 14, {}),
    "chexpert": ("chexpert", 14, {"classes": None, "label_policy": "keep"}),
    "rsna": ("rsna", 11, {"classes": ("Pneumonia", "Normal", "No Lung Opacity / Not Normal", "Lung Opacity")}),
    "siim": ("siim", 14, {"stage": 2}),
    "covidx": ("covidx", 26, {"version": "COVIDx9A"}),
    "cxr14": ("cxr14", 16, {"labels_version": "v2020"}),
    "object_cxr": ("object_cxr", 14, {}),
    "ms_cxr": ("ms_cxr", 7, {"annotations": "csv"}),
    "ms_cxr_json": ("ms_cxr", 7, {"annotations": "json"}),
    "open_i": ("open_i", 14, {}),
}
"""Name in DAMAGES to layout, number of studies, and options of the reader."""

TRIALS = 20
"""Damages per layout at least; where fewer are known, they come again with another seed. Over 400 in all."""

Digests = dict[tuple[str, str], str]


@dataclass
class Sound:
    """A tree before it is damaged.

    Args:
        tree: where it is.
        digests: (task, id) to a digest of the sample.
        remarks: what the doctor says of it.
        texts: what must never appear in a message.
    """

    tree: Tree
    digests: Digests
    remarks: set[tuple[str, str, str]]
    texts: list[str] = field(default_factory=list)


def corpus_of(tree: Tree, on_error: str) -> Corpus:
    return corpus_class(tree.name)(tree.root, on_error=on_error, **tree.options)


def digest(sample: Sample) -> str:
    total = hashlib.sha1()
    for key in ("image", "label", "mask", "boxes", "box_labels"):
        if key in sample:
            array = np.ascontiguousarray(sample[key].numpy())
            total.update(f"{key}{array.dtype}{array.shape}".encode() + array.tobytes())
    total.update(sample.get("text", "").encode())
    return total.hexdigest()


def dataset_of(records: Records, table: pa.Table) -> RadiographDataset:
    targets = [t for t, c in (("mask", "shapes"), ("boxes", "boxes")) if c in table.column_names]
    return RadiographDataset(table, targets=targets, box_names=records.box_names)


def served(tree: Tree, on_error: str) -> tuple[Digests, list[str], list[MedVLPError]]:
    """All samples of all tasks, their texts, and the errors on the way; any other error is a failure."""
    digests: Digests = {}
    texts: set[str] = set()
    errors: list[MedVLPError] = []
    corpus = corpus_of(tree, on_error)
    for task in corpus.tasks:
        try:
            records = corpus.records(task)
            dataset = dataset_of(records, corpus.after_split(records.table))
        except MedVLPError as error:
            errors.append(error)
            if on_error == "raise":
                break
            continue
        texts.update(dataset.texts)
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
            except UnreadableItemError as error:
                errors.append(error)
                if on_error == "raise":
                    return digests, sorted(texts), errors
                continue
            assert (task, sample["id"]) not in digests, "an id twice"
            digests[task, sample["id"]] = digest(sample)
    return digests, sorted(texts), errors


def remarks_of(tree: Tree) -> tuple[set[tuple[str, str, str]], str]:
    diagnosis = examine(corpus_of(tree, "raise"), deep=True, workers=1)
    remarks = {
        (check.name, check.level, check.found.replace(str(tree.root), ""))
        for check in diagnosis.checks
        if check.level != "ok"
    }
    assert diagnosis.ok == all(level != "error" for _, level, _ in remarks)
    return remarks, json.dumps(diagnosis.as_dict())


@pytest.fixture(scope="module")
def sound(request, tmp_path_factory) -> Sound:
    layout, studies, options = LAYOUTS[request.param]
    root = tmp_path_factory.mktemp("sound") / layout
    spec = PhantomSpec(studies=studies, size=48, seed=3, difficulty=Difficulty(prevalence=4.0))
    write_phantom(layout, root, spec)
    # neither the truth nor the list of entries shall give a damage away
    shutil.rmtree(root / "truth")
    manifest = json.loads((root / "phantom.json").read_text())
    (root / "phantom.json").write_text(json.dumps(manifest | {"entries": []}))
    tree = Tree(layout, root, (), options)
    corpus = corpus_of(tree, "raise")
    tables = (corpus.after_split(corpus.records(task).table) for task in corpus.tasks)
    paths = {p for table in tables for p in table.column("image").to_pylist()}
    tree = Tree(layout, root, tuple(sorted(str(Path(p).relative_to(root)) for p in paths)), options)
    digests, texts, errors = served(tree, "raise")
    remarks, _ = remarks_of(tree)
    assert digests
    assert not errors
    return Sound(tree, digests, remarks, [t for t in texts if len(t) > 30])


def judge(sound: Sound, tree: Tree, damage: Damage) -> None:
    remarks, text = remarks_of(tree)
    faults = [remark for remark in remarks if "the reader failed" in remark[2]]
    assert not faults
    new = remarks - sound.remarks
    if damage.noticed:
        assert new, "the doctor does not notice it"
    if damage.harmful:
        assert "error" in {level for _, level, _ in new}, f"no error among what the doctor says: {new}"
    assert not any(json.dumps(t)[1:-1] in text for t in sound.texts), "a report's text in the diagnosis"
    # what is harmless is served alike by both
    for on_error in ("skip", "raise") if damage.harmful else ("skip",):
        digests, _, errors = served(tree, on_error)
        wrong = [key for key, value in digests.items() if sound.digests.get(key) != value]
        assert not wrong, f"wrong samples: {wrong}"
        if damage.raises and on_error == "raise":
            assert errors, "on_error: raise goes on in silence"
        assert not any(t in str(error) for t in sound.texts for error in errors), "a report's text in an error"


_QUICK = ("mimic_cxr", "siim")


@pytest.mark.parametrize(
    "sound",
    [name if name in _QUICK else pytest.param(name, marks=pytest.mark.variant) for name in LAYOUTS],
    indirect=True,
)
def test_damaged_trees_are_noticed_and_never_give_a_wrong_sample(sound, request, tmp_path):
    warnings.simplefilter("ignore")
    name = request.node.callspec.params["sound"]
    damages = DAMAGES[name]
    failures, tried = [], 0
    for trial in range(max(TRIALS, len(damages))):
        rng = np.random.default_rng((trial, len(name)))
        root = tmp_path / str(trial)
        shutil.copytree(sound.tree.root, root)
        tree = Tree(sound.tree.name, root, sound.tree.images, sound.tree.options)
        damage = damages[trial % len(damages)](rng, tree)
        if damage is not None:
            tried += 1
            try:
                judge(sound, tree, damage)
            except Exception as error:
                failures.append(f"{damage.text}: {type(error).__name__}: {str(error).splitlines()[0]}")
        shutil.rmtree(root)
    assert tried >= 12
    assert not failures, "\n".join([f"{len(failures)} of {tried}:", *failures])
