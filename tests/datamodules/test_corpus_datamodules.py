"""What holds for the data modules of all corpora alike, over phantoms that the configs in tests/conf describe."""

import functools
import os
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import jsonargparse
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from medvlp.datamodules.corpus import CorpusDataModule
from medvlp.datasets import CORPORA, corpus_class
from medvlp.errors import DataError, TooManySkippedError, UnreadableItemError
from medvlp.io.headers import read_header
from medvlp.phantom import write_phantom
from medvlp.phantom.truth import read_truth_masks
from medvlp.prepare import prepare
from medvlp.resizing import Geometry, build_resize
from medvlp.splits import Part, SplitLeakWarning, make_split
from medvlp.text import train_wordpiece

CONF = Path(__file__).parents[1] / "conf"
SHARED = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
PARTS = ("train_set", "val_set", "test_set")
PIXELS = 64
"""Side of the phantoms' images."""

TASKS = [(name, task) for name in CORPORA for task in corpus_class(name).tasks]
TEST_ONLY = {("cxr14", "detection"), ("cxr14", "grounding")}
"""Only images of the official test set have boxes."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::medvlp.splits.SplitLeakWarning"),
    # what Lightning says about loaders without a trainer is not looked at here
    pytest.mark.filterwarnings("ignore:.*holds no prepared images.*:UserWarning"),
]


@functools.cache
def _parsed(name: str) -> tuple[type[CorpusDataModule], dict]:
    """Class and arguments of a config, read as ``medvlp fit --config`` reads it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    config = parser.parse_args(["--config", str(CONF / f"{name}.yaml")])
    arguments = dict(config.data.init_args.as_dict())
    data = parser.instantiate_classes(config).data
    assert (data.corpus.name, data.cache_name) == (name, name)
    return type(data), {**arguments, "phantom": data.phantom}


def _module(name: str, root: Path, **changes: object) -> CorpusDataModule:
    """The data module of a config with other arguments; parsing them each time would take most of the time."""
    kind, arguments = _parsed(name)
    return kind(**{**arguments, "root": str(root), **changes})


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """Name of a corpus to its phantom, which is written when it is first asked for."""
    folder, found = tmp_path_factory.mktemp("corpora"), {}

    def tree(name: str) -> Path:
        if name not in found:
            # so small a phantom leaves no need for further processes, which prepare_data starts
            found[name] = write_phantom(name, folder / name, _parsed(name)[1]["phantom"])
            _module(name, found[name]).prepare_data()  # finds it complete
        return found[name]

    return tree


def _batch(data: CorpusDataModule, *, train: bool) -> dict:
    return next(iter(data.train_dataloader() if train else data.test_dataloader()))


def _same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, second[key], rtol=0, atol=0, equal_nan=True)
        elif len(value) and isinstance(value[0], torch.Tensor):
            assert all(torch.equal(a, b) for a, b in zip(value, second[key], strict=True))
        else:
            assert value == second[key]


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_batch_of_each_task(trees, name, task):
    data = _module(name, trees(name), task=task, batch_size=2)
    train = (name, task) not in TEST_ONLY
    data.setup("fit" if train else "test")
    dataset = data.train_set if train else data.test_set
    texts = dataset.texts
    assert bool(texts) or task not in ("pairs", "grounding")
    if texts:
        data.attach_tokenizer(train_wordpiece(texts, 100), max_length=12)
    batch = _batch(data, train=train)
    keys = {"image", "id", "index", "label", "skipped"}
    if texts:
        keys |= {"text", "input_ids", "attention_mask", "word_groups"}
    if task in ("segmentation", "grounding"):
        keys |= {"mask", "size", "geometry"}
    if task in ("detection", "grounding"):
        keys |= {"boxes", "box_labels", "size", "geometry"}
    assert set(batch) == keys
    size = len(batch["id"])
    assert size == min(2, len(dataset))
    assert batch["image"].shape == (size, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].shape == (size, len(data.label_names))
    assert batch["skipped"] == []
    if "mask" in keys:
        assert batch["mask"].shape == (size, 1, 32, 32)
        assert set(batch["mask"].unique().tolist()) <= {0, 1}
    if "boxes" in keys:
        for boxes, labels in zip(batch["boxes"], batch["box_labels"], strict=True):
            assert boxes.shape == (len(labels), 4)
            assert ((boxes >= 0) & (boxes <= 32)).all()
            assert ((labels >= 0) & (labels < len(dataset.box_names))).all()
    if "size" in keys:
        files = [read_header(Path(dataset.table["image"][i].as_py())) for i in batch["index"].tolist()]
        assert batch["size"].tolist() == [[f.height, f.width] for f in files]
        assert batch["geometry"].shape == (size, len(Geometry._fields))


@pytest.mark.parametrize("name", CORPORA)
def test_prepared_images_give_the_same_batches(trees, tmp_path, name):
    plain = _module(name, trees(name), seed=5)
    prepare(plain.corpus, tmp_path, transform=plain.transform, size=plain.image_size, task=plain.task, workers=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*holds no prepared images")
        cached = _module(name, trees(name), seed=5, cache_dir=tmp_path)
        cached.setup()
    for split in PARTS:
        assert not len(getattr(cached, split)) or getattr(cached, split)._cache is not None
    plain.setup()
    for train in (True, False):
        if train or len(plain.test_set):
            _same(_batch(cached, train=train), _batch(plain, train=train))


def test_a_torn_mask_holds_the_rows_of_its_part(trees):
    """MGCA's split of SIIM draws mask rows: two parts may show parts of one pneumothorax."""
    corpus = _module("siim", trees("siim")).corpus
    listing, records = corpus.listing(), corpus.records("grounding")
    several = np.flatnonzero(np.bincount(listing.rows) > 1)
    assert len(several)
    for record in several:
        rows = np.flatnonzero(listing.rows == record)
        for some in (rows[:1], rows[1:], rows[::-1]):
            part = corpus.chosen(records, listing, Part(np.array([record]), some))
            taken, whole = (t.to_pylist()[0] for t in (records.take(part), records.table.take(part.records)))
            kept = np.isin(rows, some)
            assert taken["shapes"] == [s for s, k in zip(whole["shapes"], kept, strict=True) if k]
            assert taken["boxes"] == np.array(whole["boxes"]).reshape(-1, 4)[kept].ravel().tolist()
            assert len(taken["box_labels"]) == len(some)
    gone = replace(records, rows=np.where(records.rows == several[0], -1, records.rows))
    with pytest.raises(DataError, match=r"label rows of .* were left out, .*; make it from listing\(\)"):
        corpus.split_input(gone)


def test_masks_are_those_of_the_phantom(trees):
    root = trees("siim")
    data = _module("siim", root, transform="phantom", eval_batch_size=100)
    resize = build_resize("square:32")
    shown = 0
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            for item, mask, geometry in zip(batch["id"], batch["mask"], batch["geometry"], strict=True):
                truth = read_truth_masks(root / f"truth/masks/{item}.npz")
                exact = truth.get("Pneumothorax", np.zeros((PIXELS, PIXELS), bool))
                wanted = resize.mask(torch.from_numpy(exact).unsqueeze(0), Geometry(*geometry.tolist()))
                assert torch.equal(mask, wanted.float())
                shown += int(mask.any())
    assert shown


@pytest.mark.parametrize(
    ("name", "findings", "margin"),
    # readers of Object-CXR draw around an object
    [("rsna", ("Pneumonia", "Consolidation", "Infiltration"), 0), ("object_cxr", ("Foreign Object",), 3)],
)
def test_boxes_are_those_of_the_phantom(trees, name, findings, margin):
    root = trees(name)
    truth = pd.read_csv(root / "truth/boxes.csv", dtype={"image_id": str})
    truth = truth[truth["finding"].isin(findings)]
    data = _module(name, root, task="detection", transform="phantom", batch_size=1, eval_batch_size=100)
    data.setup()
    # without augmentation, in the order of the table
    found = {}
    for part in PARTS:
        dataset = getattr(data, part).prepared(data.val_set.transform, targets=("boxes",))
        samples = (dataset[i] for i in range(len(dataset)))
        found |= {s["id"]: (s["boxes"], s["size"]) for s in samples}
    assert sum(len(b) > 0 for b, _ in found.values()) >= 2
    assert sum(len(b) == 0 for b, _ in found.values()) >= 2
    for item, (boxes, size) in found.items():
        scale = 32 / size.flip(0).repeat(2).numpy()
        exact = truth[truth["image_id"] == item][["x0", "y0", "x1", "y1"]].to_numpy() * scale
        assert (len(exact) > 0) == (len(boxes) > 0)
        if len(exact):
            # a finding may be boxed in pieces, and more than four boxes are joined: their outline stays
            outline = np.concatenate([boxes.numpy()[:, :2].min(0), boxes.numpy()[:, 2:].max(0)])
            wanted = np.concatenate([exact[:, :2].min(0), exact[:, 2:].max(0)])
            assert np.abs(outline - wanted).max() <= margin + 1e-4


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CORPORA)
def test_fractions_lie_inside_each_other(trees, name):
    ids = []
    for fraction in (0.1, 0.5, 1.0):
        data = _module(name, trees(name), fraction=fraction, batch_size=1)
        data.setup("fit")
        ids.append(data.train_set.ids)
    few, half, everything = map(set, ids)
    assert 0 < len(few) < len(half) < len(everything)
    assert few < half < everything
    assert [i for i in ids[2] if i in half] == ids[1]  # in the same order


def _victim(name: str, data: CorpusDataModule, root: Path) -> tuple[Path, str]:
    """A file that a training sample needs, and the id under which it is counted when it is gone."""
    row = data.train_set.table.slice(len(data.train_set) // 2, 1).to_pylist()[0]
    image = Path(row["image"])
    if name == "mimic_cxr":  # images are not looked for, reports are
        return image.parent.parent / f"{image.parent.name}.txt", row["id"]
    return image, {"ms_cxr": image.stem, "cxr14": image.name}.get(name, row["id"])


SPLITS = [(name, None) for name in CORPORA] + [
    ("siim", "mgca"),
    ("chexpert", "mgca"),
    ("rsna", "mgca"),
    ("cxr14", "kad"),
]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_a_missing_file_moves_no_other_sample(trees, tmp_path, name, split):
    root = shutil.copytree(trees(name), tmp_path / "tree")
    changes = {"on_error": "skip", "max_skipped": 0.2, **({"split": split} if split else {})}
    whole = _module(name, root, **changes)
    whole.setup()
    path, counted = _victim(name, whole, root)
    path.unlink()
    data = _module(name, root, **changes)
    data.setup()
    assert data.split_result.digest == whole.split_result.digest
    skipped = data.skipped_at_index
    skipped = skipped[skipped["broken"] & ~skipped["id"].isin(whole.skipped_at_index["id"])]
    assert any(i.endswith(counted) for i in skipped["id"])  # CheXpert counts a row by its whole Path
    gone = 0
    for part in PARTS:
        # of one study all images may go with their report, of one image all phrases
        before, after = ([str(r) for r in getattr(m, part).table.to_pylist()] for m in (whole, data))
        lost = [r for r in before if r not in after]
        assert after == [r for r in before if r not in lost]
        assert all(path.stem in r for r in lost)
        gone += len(lost)
    assert gone
    with pytest.raises(TooManySkippedError, match=r"max_skipped: 0\.0 allows"):
        _module(name, root, **{**changes, "max_skipped": 0.0}).setup()
    with pytest.raises(UnreadableItemError, match=r"row -?\d+.*item.*;.*(get|download).*on_error: skip") as caught:
        _module(name, root, **{**changes, "on_error": "raise"}).setup()
    assert caught.value.item_id
    assert "missing" in str(caught.value)


IMAGE_FOLDERS = ("files", "images_*", "dicom-*", "stage_2_*_images", "train", "valid", "dev", "test", "NLMCXR_png")


@pytest.mark.parametrize("name", CORPORA)
def test_listing_needs_no_image(trees, tmp_path, name):
    root = shutil.copytree(trees(name), tmp_path / "tree")
    corpus = _module(name, root).corpus
    whole = corpus.listing()
    records = corpus.records(_module(name, root).task)
    assert set(corpus.split_keys(records)) <= set(whole.ids)
    for pattern in IMAGE_FOLDERS:
        for folder in root.glob(pattern):
            shutil.rmtree(folder)
    bare = corpus.listing()
    # the table of CheXpert's test set names studies, so the second images of these are known from the disk alone
    known = whole.pool != "test" if name == "chexpert" else np.ones(len(whole), dtype=bool)
    assert bare.ids.tolist()[: known.sum()] == whole.ids[known].tolist()
    assert len(bare) == len(whole) or name == "chexpert"
    for field in ("patients", "pool", "views", "frontal"):
        assert getattr(bare, field)[: known.sum()].tolist() == getattr(whole, field)[known].tolist()
    pd.testing.assert_frame_equal(bare.labels[: known.sum()], whole.labels[known])
    if name == "chexpert":
        studies = {i.rpartition("/")[0] for i in whole.ids[~known]}
        assert {i.rpartition("/")[0] for i in bare.ids[known.sum() :]} == studies


BROKEN_CELLS = {
    "rsna": ("stage_2_train_labels.csv", r",1\n", ",7\n"),
    "siim": ("stage_2_train.csv", r",\d+ [^\n]*\n", ",1 x\n"),
    "chexpert": ("train.csv", r",1\.0\n", ",7.0\n"),
    "covidx": ("train_COVIDx9A.txt", " pneumonia ", " tuberculosis "),
    "cxr14": ("Data_Entry_2017_v2020.csv", r"png,[^,]+,", "png,Tumour,"),
    "object_cxr": ("train.csv", r",\d [^\n]*\n", ",9 1 2\n"),
    "ms_cxr": ("MS_CXR_Local_Alignment_v1.1.0.csv", r"\n([^,]+),[^,]+,", r"\n\1,Tumour,"),
}


@pytest.mark.parametrize("name", BROKEN_CELLS)
def test_a_broken_annotation_shifts_no_split(trees, tmp_path, name):
    root = shutil.copytree(trees(name), tmp_path / "tree")
    corpus = _module(name, root, on_error="raise").corpus
    whole = corpus.listing()
    table, old, new = BROKEN_CELLS[name]
    text = (root / table).read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    (root / table).write_text(changed)
    with pytest.raises(UnreadableItemError):
        corpus.records()
    broken = corpus.listing()
    assert broken.ids.tolist() == whole.ids.tolist()
    assert broken.pool.tolist() == whole.pool.tolist()
    if whole.rows is not None:
        assert broken.rows.tolist() == whole.rows.tolist()
    different = (broken.labels.fillna(9) != whole.labels.fillna(9)).any(axis=1)
    assert different.sum() <= 1
    assert broken.labels[different].isna().any(axis=1).all() or name == "ms_cxr"


@pytest.mark.parametrize(
    ("name", "files", "splits"),
    [
        (
            "rsna",
            {"rsna_stage_2_train_labels.csv.zip": "stage_2_train_labels.csv.zip"},
            ("g2d", "mgca", "mgca_detection", "benchx", "clean"),
        ),
        (
            "cxr14",
            {
                "nih_Data_Entry_2017_v2020.csv.gz": "Data_Entry_2017_v2020.csv.gz",
                "nih_train_val_list_derived.txt.gz": "train_val_list.txt.gz",
                "nih_test_list_derived.txt.gz": "test_list.txt.gz",
            },
            ("official", "kad", "g2d", "medklip", "clean"),
        ),
        ("open_i", {"openi_NLMCXR_reports.tgz": "NLMCXR_reports.tgz"}, ("clean", "all")),
    ],
)
def test_published_splits_from_the_released_tables_alone(tmp_path, name, files, splits):
    for source, target in files.items():
        if not (SHARED / source).is_file():
            pytest.skip(f"shared/data/{source} is not here")
        (tmp_path / target).symlink_to((SHARED / source).resolve())
    listing = corpus_class(name)(tmp_path).listing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitLeakWarning)
        assert all(make_split(name, split, listing).verified for split in splits)


# ── command line ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CORPORA)
def test_command_line_sees_every_argument(name):
    """jsonargparse resolves all types, and every argument has its line of help."""
    kind, _ = _parsed(name)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "data")
    text = parser.format_help()
    for argument in ("batch_size", "transform", "fraction", "on_error", "cache_dir", "task", "split", "fraction_rule"):
        assert f"--data.{argument}" in text
    for action in parser._actions:
        if action.dest.startswith("data.") and "phantom." not in action.dest:
            assert action.help, action.dest
    words = ["--data.root=x", "--data.fraction=0.1", *(["--data.version=COVIDx9A"] if name == "covidx" else [])]
    for task in corpus_class(name).tasks:
        assert parser.parse_args([*words, f"--data.task={task}"]).data.task == task
    with pytest.raises(jsonargparse.ArgumentError, match="task"):
        parser.parse_args([*words, "--data.task=other"])
