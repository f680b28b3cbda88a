import csv
import json

import numpy as np
import pytest
from PIL import Image

from medvlp.datamodules.ms_cxr import MSCXRDataModule
from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.ms_cxr import CATEGORIES, MSCXR
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.phantom import write_phantom
from medvlp.phantom.model import PhantomSpec
from medvlp.splits import make_split

HEADER = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"
SECRET = "a phrase that no message may show"


def _path(patient, study, image):
    return f"files/p{str(patient)[:2]}/p{patient}/s{study}/{image}.jpg"


A, B = _path(19000001, 59000001, "aaaa-01"), _path(19000002, 59000002, "bbbb-02")
ROWS = [
    f"bbbb-02,Edema,bilateral edema,{B},5,10,20,20,60,50,val",
    f"aaaa-01,Pneumothorax,{SECRET},{A},30,15,42,38,100,120,test",
    f"bbbb-02,Edema,bilateral edema,{B},30,12,25,18,60,50,val",
    f'bbbb-02,Pneumonia,"pneumonia, left",{B},1,2,3,4,60,50,val',
]
STEM = "MS_CXR_Local_Alignment_v1.1.0"


def _images(root):
    for path, size in ((A, (100, 120)), (B, (60, 50))):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(root / path)


def _write(root, rows=ROWS, header=HEADER, name=f"{STEM}.csv"):
    root.mkdir(exist_ok=True)
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    _images(root)
    return root


def _coco(rows=ROWS):
    records = list(csv.DictReader([HEADER, *rows]))
    paths = sorted({r["path"] for r in records})
    sizes = {r["path"]: (int(r["image_width"]), int(r["image_height"])) for r in records}
    return {
        "categories": [{"id": i, "name": n} for i, n in enumerate(CATEGORIES, 1)],
        "images": [{"id": i, "path": p, "width": sizes[p][0], "height": sizes[p][1]} for i, p in enumerate(paths)],
        "annotations": [
            {
                "image_id": paths.index(r["path"]),
                "category_id": CATEGORIES.index(r["category_name"]) + 1,
                "label_text": r["label_text"],
                "bbox": [int(r[k]) for k in "xywh"],
                "width": sizes[r["path"]][0],
                "height": sizes[r["path"]][1],
                "split": r["split"],
            }
            for r in records
        ],
    }


def test_a_phrase_with_several_boxes_is_one_record(tmp_path):
    records = MSCXR(_write(tmp_path)).records("grounding")
    assert records.column("id").tolist() == ["bbbb-02_1", "aaaa-01_1", "bbbb-02_2"]
    assert records.column("text").tolist() == ["bilateral edema", SECRET, "pneumonia, left"]
    assert records.column("patient").tolist() == ["19000002", "19000001", "19000002"]
    assert records.column("study").tolist() == ["59000002", "59000001", "59000002"]
    assert records.column("pool").tolist() == ["validate", "test", "validate"]
    assert records.table["boxes"].to_pylist() == [[5, 10, 25, 30, 30, 12, 55, 30], [30, 15, 72, 53], [1, 2, 4, 6]]
    assert records.table["box_labels"].to_pylist() == [[3, 3], [7], [6]]
    assert records.label_names == records.box_names == CATEGORIES
    assert [r["Edema"] for r in records.table.to_pylist()] == [1, 0, 0]
    sample = RadiographDataset(records.table, targets=("mask", "boxes"))[0]
    assert sample["mask"].sum() == 20 * 20 + 25 * 18


def test_an_image_is_one_record_for_detection_and_classification(tmp_path):
    _write(tmp_path)
    records = MSCXR(tmp_path).records("detection")
    assert records.column("id").tolist() == ["bbbb-02", "aaaa-01"]
    assert records.table["box_labels"].to_pylist() == [[3, 3, 6], [7]]
    assert "text" not in records.table.column_names
    labels = MSCXR(tmp_path).records("classification").table.to_pylist()[0]
    assert [n for n in CATEGORIES if labels[n]] == ["Edema", "Pneumonia"]


def test_json_and_csv_say_the_same(tmp_path):
    table = MSCXR(_write(tmp_path)).records().table
    (tmp_path / f"{STEM}.json").write_text(json.dumps(_coco()))
    assert MSCXR(tmp_path, annotations="json").records().table.equals(table)
    (tmp_path / f"{STEM}.csv").unlink()
    assert MSCXR(tmp_path).records().table.equals(table)
    with pytest.raises(DataError, match=r"has neither MS_CXR_Local_Alignment_v1\.1\.0\.csv nor .*v1\.0\.0\.csv"):
        MSCXR(tmp_path, annotations="csv").records()
    with pytest.raises(ConfigError, match="unknown annotations"):
        MSCXR(tmp_path, annotations="coco")


def test_the_older_release_has_no_split(tmp_path):
    rows = [row.rpartition(",")[0] for row in ROWS]
    root = _write(tmp_path, rows, HEADER.removesuffix(",split"), "MS_CXR_Local_Alignment_v1.0.0.csv")
    records = MSCXR(root).records()
    assert set(records.column("pool")) == {""}
    assert len(records) == 3


@pytest.mark.parametrize("layout", ["released", "bare", "flat"])
def test_images_under_another_root(tmp_path, layout):
    root = _write(tmp_path / "ms")
    other = tmp_path / "mimic"
    for path in (A, B):
        target = {"released": path, "bare": path.removeprefix("files/"), "flat": "files/" + path.rpartition("/")[2]}
        place = other / target[layout]
        place.parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(place)
    assert len(MSCXR(root, mimic_root=other).records()) == 3
    with pytest.raises(UnreadableItemError, match=r"row 0, item bbbb-02: missing image file"):
        MSCXR(root).records()
    with pytest.raises(DataError, match=r"mimic_root .* does not exist"):
        MSCXR(root, mimic_root=tmp_path / "none").records()


def test_boxes_follow_a_reduced_copy_of_the_image(tmp_path):
    _write(tmp_path)
    Image.new("L", (30, 25)).save(tmp_path / B)
    boxes = MSCXR(tmp_path).records().table["boxes"].to_pylist()
    assert boxes[0] == [2.5, 5, 12.5, 15, 15, 6, 27.5, 15]
    Image.new("L", (30, 30)).save(tmp_path / B)
    with pytest.raises(UnreadableItemError, match="30 x 30 pixels, another shape than the table says"):
        MSCXR(tmp_path).records()
    assert MSCXR(tmp_path, on_error="skip").records().column("id").tolist() == ["aaaa-01_1"]


def _row(**changes):
    cells = dict(zip(HEADER.split(","), ROWS[1].split(","), strict=True)) | {"split": "test"}
    return ",".join((cells | changes).values())


BROKEN = [
    ({"x": "ten"}, "box or image size that is no number"),
    ({"w": "nan"}, "box or image size that is no number"),
    ({"w": "0"}, "empty box"),
    ({"h": "-4"}, "empty box"),
    ({"x": "60"}, "box outside the image"),
    ({"y": "-1"}, "box outside the image"),
    ({"category_name": "Tumour"}, "unknown class"),
    ({"label_text": " "}, "blank phrase"),
    ({"dicom_id": ""}, "blank id"),
    ({"path": "/etc/" + A}, "path leads out of the corpus"),
    ({"path": "files/../../" + A}, "path leads out of the corpus"),
    ({"path": "aaaa-01.jpg"}, r"path is not files/p"),
    ({"path": B}, "path names another image"),
    ({"image_width": "101"}, "two rows of one image differ in the image size"),
    ({"split": "train"}, "two rows of one image differ in the split"),
]


@pytest.mark.parametrize(("changes", "reason"), BROKEN)
def test_broken_rows(tmp_path, changes, reason):
    root = _write(tmp_path, [*ROWS, _row(**changes)])
    with pytest.raises(UnreadableItemError, match=rf"{STEM}\.csv, row \d.*{reason}.*on_error: skip") as caught:
        MSCXR(root).records()
    assert SECRET not in str(caught.value)
    corpus = MSCXR(root, on_error="skip")
    records = corpus.records()
    assert set(corpus.split_keys(records)) <= set(corpus.listing().ids)
    # the phrase of the broken row goes as a whole, other phrases stay; a row between two images takes both along
    assert ("bilateral edema" in records.column("text")) == (reason != "path names another image")
    assert records.dropped["broken"].all()
    assert SECRET not in records.dropped.to_string()


def test_a_backslash_is_a_separator(tmp_path):
    rows = [row.replace(B, B.replace("/", "\\")) for row in ROWS]
    assert len(MSCXR(_write(tmp_path, rows)).records()) == 3


def test_repeated_rows_are_counted(tmp_path):
    records = MSCXR(_write(tmp_path, [*ROWS, ROWS[0]])).records()
    assert records.dropped.attrs["counts"] == {"repeats an earlier row": 1}
    assert len(records.table["boxes"][0].as_py()) == 8


def _without(key):
    content = _coco()
    del content["annotations"][1][key]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no COCO file"),
        ("[]", "is no COCO file"),
        ({**_coco(), "annotations": 5}, "is no COCO file"),
        ({**_coco(), "images": _coco()["images"] * 2}, "is no COCO file"),
        (_without("label_text"), "annotation 1 lacks 'label_text'"),
        (_without("bbox"), "annotation 1 lacks 'bbox'"),
        (_coco() | {"images": []}, "annotation 0 lacks"),
        (_coco() | {"categories": []}, "annotation 0 lacks"),
    ],
)
def test_broken_json(tmp_path, content, message):
    _write(tmp_path)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / f"{STEM}.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        MSCXR(tmp_path, annotations="json").records()
    assert SECRET not in str(caught.value)


def test_json_sizes_must_agree(tmp_path):
    _write(tmp_path)
    content = _coco()
    content["images"][0]["width"] += 1
    (tmp_path / f"{STEM}.json").write_text(json.dumps(content))
    with pytest.raises(UnreadableItemError, match="image and annotation differ in the image size"):
        MSCXR(tmp_path, annotations="json").records()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("ms") / "tree"
    return write_phantom("ms_cxr", root, PhantomSpec(studies=100, size=64, seed=3))


def test_phantom_agrees_with_its_truth(phantom):
    records = MSCXR(phantom).records()
    assert len(records.dropped) == 0
    assert (
        MSCXR(phantom, annotations="json")
        .records()
        .table.drop_columns(["pool"])
        .equals(records.table.drop_columns(["pool"]))
    )
    truth = {}
    with (phantom / "truth/boxes.csv").open() as file:
        for row in csv.DictReader(file):
            truth.setdefault(row["image_id"], set()).add(tuple(float(row[k]) for k in ("x0", "y0", "x1", "y1")))
    found = {}
    for image, flat in zip(records.column("id"), records.table["boxes"].to_pylist(), strict=True):
        boxes = {tuple(flat[i : i + 4]) for i in range(0, len(flat), 4)}
        assert boxes <= truth[image.rpartition("_")[0]]
        found.setdefault(image.rpartition("_")[0], set()).update(boxes)
    assert len(found) == len(truth)
    with (phantom / "truth/labels.csv").open() as file:
        flags = {row["image_id"]: row for row in csv.DictReader(file)}
    for row in MSCXR(phantom).records("classification").table.to_pylist():
        for name in set(CATEGORIES) - {"Lung Opacity"}:
            assert row[name] == float(flags[row["id"]][name])


def test_a_mimic_phantom_holds_the_images(phantom, tmp_path):
    spec = PhantomSpec(studies=100, size=64, seed=3)
    mimic = write_phantom("mimic_cxr", tmp_path / "mimic", spec)
    records = MSCXR(phantom, mimic_root=mimic).records()
    assert len(records) == len(MSCXR(phantom).records())
    assert records.column("image")[0].startswith(str(mimic))


def test_data_module_on_a_phantom(phantom):
    data = MSCXRDataModule(str(phantom), batch_size=4, image_size=32, split="all")
    data.setup("test")
    sample = data.test_set[0]
    assert sample["mask"].shape == (1, 32, 32)
    assert sample["boxes"].shape[1] == 4
    assert sample["text"]
    assert np.isin(sample["label"].numpy(), (0, 1)).all()


def test_splits_are_drawn_from_all_listed_images(tmp_path):
    corpus = MSCXR(_write(tmp_path), on_error="skip")
    whole = corpus.listing()
    assert whole.ids.tolist() == ["bbbb-02", "aaaa-01"]
    (tmp_path / B).unlink()
    assert corpus.listing().ids.tolist() == whole.ids.tolist()
    records = corpus.records()
    part = make_split("ms_cxr", "official", whole, strict=False).parts
    assert corpus.chosen(records, whole, part["test"]).records.tolist() == [0]
    assert corpus.chosen(records, whole, part["validate"]).records.tolist() == []
