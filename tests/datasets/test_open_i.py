import collections
import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from medvlp.datamodules.open_i import OpenIDataModule
from medvlp.datasets.open_i import OpenI
from medvlp.datasets.open_i_reports import MESH_LABELS, parse, report_files
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.phantom import write_phantom
from medvlp.phantom.model import PhantomSpec
from medvlp.splits import make_split

SHARED = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
SECRET = "A sentence that no message may show."


def _xml(number, findings="", impression="", images=(), terms=("normal",), study=None):
    text = {"COMPARISON": "", "INDICATION": "Cough.", "FINDINGS": findings, "IMPRESSION": impression}
    abstract = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in text.items())
    mesh = "".join(f"<major>{t}</major>" for t in terms)
    shown = "".join(f'<parentImage id="{i}"><caption>Chest</caption></parentImage>' for i in images)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<eCitation><uId id="{study or f"CXR{number}"}"/><MedlineCitation><Article><Abstract>{abstract}</Abstract>'
        f"</Article></MedlineCitation><MeSH>{mesh}</MeSH>{shown}</eCitation>"
    )


REPORTS = {
    10: _xml(10, "Lungs are clear &lt; 2 cm.", "Normal chest XXXX.", ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001"]),
    2: _xml(2, SECRET, "", ["CXR2_2_IM-0001-1001"], ["Cardiomegaly/mild", "Nodule/lung/lingula"]),
    3: _xml(3, "", "Stable small effusion.", ["CXR3_IM-0005-1001"], ["Pleural Effusion/left/small"]),
    4: _xml(4, "", "", ["CXR4_IM-0006-1001"], ["No Indexing"]),
    5: _xml(5, "Clear lungs today.", ""),
    6: _xml(6, "", "Normal.", ["CXR6_IM-0007-1001"], ["Nodule/breast", "Mass/mediastinum"]),
}
IMAGES = ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001", "CXR2_2_IM-0001-1001", "CXR3_IM-0005-1001", "CXR4_IM-0006-1001"]
IMAGES += ["CXR6_IM-0007-1001"]


def _write(root, reports=REPORTS, folder="NLMCXR_png", packed=False):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        Image.new("L", (8, 8)).save(root / folder / f"{image}.png")
    if packed:
        with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
            for number, text in reports.items():
                member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    else:
        (root / "ecgen-radiology").mkdir(exist_ok=True)
        for number, text in reports.items():
            (root / f"ecgen-radiology/{number}.xml").write_text(text)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_by_report_number(tmp_path, packed):
    records = OpenI(_write(tmp_path, packed=packed)).records("pairs")
    assert records.column("id").tolist() == [IMAGES[2], IMAGES[3], IMAGES[0], IMAGES[1]]
    assert records.column("text").tolist() == [
        SECRET,
        "Stable small effusion.",
        *["Normal chest XXXX. Lungs are clear < 2 cm."] * 2,
    ]
    assert records.column("patient").tolist() == ["2", "3", "10", "10"]
    assert records.column("study").tolist() == ["CXR2", "CXR3", "CXR10", "CXR10"]
    assert set(records.column("view")) == {""}
    assert records.dropped.attrs["counts"] == {
        "report without an image": 1,
        "no impression or findings": 1,
        "fewer than 3 tokens": 1,
    }
    assert not records.dropped["broken"].any()
    assert records.column("image")[0] == str(tmp_path.resolve() / f"NLMCXR_png/{IMAGES[2]}.png")


def test_labels_come_from_the_major_terms(tmp_path):
    records = OpenI(_write(tmp_path)).records("classification")
    assert len(records) == 6  # no text is needed
    assert "text" not in records.table.column_names
    rows = {r["id"]: r for r in records.table.to_pylist()}
    assert rows[IMAGES[0]]["No Finding"] == 1
    assert [n for n in MESH_LABELS if rows[IMAGES[2]][n] == 1] == ["Cardiomegaly", "Nodule"]
    assert [n for n in MESH_LABELS if rows[IMAGES[3]][n] == 1] == ["Pleural Effusion"]
    assert all(rows[IMAGES[4]][n] != rows[IMAGES[4]][n] for n in records.label_names)  # not indexed: unknown
    assert sum(rows[IMAGES[5]][n] for n in records.label_names) == 0  # a nodule of the breast is none of the lung


@pytest.mark.parametrize("folder", [".", "images", "images/images_normalized"])
def test_other_places_of_the_images(tmp_path, folder):
    assert len(OpenI(_write(tmp_path, folder=folder)).records("classification")) == 6


def test_the_projections_of_the_kaggle_mirror(tmp_path):
    root = _write(tmp_path, folder="images/images_normalized")
    rows = []
    for i, image in enumerate(IMAGES):
        # 10_IM-0002-1001 and, where the id repeats the number, 2_IM-0001-1001
        name = (image.partition("_")[2] if image.startswith("CXR2_2") else image.removeprefix("CXR")) + ".dcm.png"
        (root / f"images/images_normalized/{image}.png").rename(root / f"images/images_normalized/{name}")
        rows.append(f"{name.partition('_')[0]},{name},{'Lateral' if i == 1 else 'Frontal'}")
    (root / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *rows]) + "\n")
    corpus = OpenI(root)
    records = corpus.records("classification")
    assert records.column("id").tolist() == [IMAGES[2], IMAGES[3], IMAGES[4], IMAGES[5], IMAGES[0], IMAGES[1]]
    assert records.column("view").tolist() == ["Frontal"] * 5 + ["Lateral"]
    assert corpus.split_input(records).frontal.tolist() == [True] * 5 + [False]
    assert len(corpus.after_split(records.table)) == 5
    assert OpenI(root, views=("Lateral",)).after_split(records.table)["id"].to_pylist() == [IMAGES[1]]
    (root / "indiana_projections.csv").write_text(f"uid,filename,projection\n10,{name},Oblique\n")
    with pytest.raises(UnreadableItemError, match=r"indiana_projections\.csv, row 0.*neither Frontal nor Lateral"):
        corpus.records()


def test_policies_cleaning_and_classes(tmp_path):
    _write(tmp_path)
    findings = OpenI(tmp_path, report_policy="findings").records("pairs")
    assert set(findings.column("text")) == {SECRET, "Lungs are clear < 2 cm."}
    assert findings.dropped.attrs["counts"]["no findings text"] == 3
    every = OpenI(tmp_path, report_policy="all", min_tokens=1).records("pairs")
    assert every.column("text")[0] == f"INDICATION: Cough. FINDINGS: {SECRET}"
    assert len(every) == 5  # an indication alone says nothing about an image
    clean = OpenI(tmp_path, cleaning="mgca").records("pairs")
    assert clean.column("text")[1] == "stable small effusion"
    corpus = OpenI(tmp_path, classes=("Nodule", "No Finding"))
    assert corpus.after_split(corpus.records().table).column_names[-2:] == ["Nodule", "No Finding"]
    for options in ({"report_policy": "last_paragraph"}, {"cleaning": "x"}, {"classes": ["Effusion"]}):
        with pytest.raises(ConfigError, match=r"x|last_paragraph|Effusion"):
            OpenI(tmp_path, **options)


GOOD = _xml(9, "Clear lungs today.", "", ["CXR9_IM-0001-1001"])
BOMB = GOOD.replace("<eCitation>", '<!DOCTYPE eCitation [<!ENTITY a "aaaa">]><eCitation>')
BROKEN = [
    (b"", "empty report file"),
    (b"\n \n", "empty report file"),
    (GOOD[:-20].encode(), "XML that does not parse"),
    (BOMB.encode(), "XML with a document type or entities"),
    (
        GOOD.encode().replace(b"<eCitation>", b"<!entity % x SYSTEM 'file:///etc/passwd'><eCitation>"),
        "XML with a document",
    ),
    (GOOD.encode("utf-16"), "undecodable report file"),
    (GOOD.encode().replace(b"Clear", b"\xff\xfe"), "undecodable report file"),
    (GOOD.replace("Clear", "Clear " * 200_000).encode(), "report larger than 1 MiB"),
    (GOOD.replace('id="CXR9"', "").encode(), "XML without a uId"),
    (_xml(9, "Clear lungs today.", "", ["x"], study="CXR3").encode(), "same uId as report 3"),
    (_xml(9, "Clear lungs today.", "", [""]).encode(), "blank or malformed image id"),
    (_xml(9, "Clear lungs today.", "", ["../../x"]).encode(), "blank or malformed image id"),
    (_xml(9, "Clear lungs today.", "", [IMAGES[3]]).encode(), "image of report 3 as well"),
    (GOOD.encode(), "missing image file"),
]


@pytest.mark.parametrize(("data", "reason"), BROKEN)
def test_broken_reports(tmp_path, data, reason):
    root = _write(tmp_path)
    (root / "ecgen-radiology/9.xml").write_bytes(data)
    with pytest.raises(UnreadableItemError, match=rf"9\.xml.*row 5.*{reason}.*set on_error: skip") as caught:
        OpenI(root).records()
    assert "Clear" not in str(caught.value)
    records = OpenI(root, on_error="skip").records()
    assert len(records) == 4
    assert records.dropped["broken"].sum() == 1


def test_broken_archives(tmp_path):
    root = _write(tmp_path, packed=True)
    path = root / "NLMCXR_reports.tgz"
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"no archive", data[:30] + b"\0\1\2" + data[33:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"NLMCXR_reports\.tgz cannot be read \(\w+\); get it again from"):
            OpenI(root).records()
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 80 << 20  # tarfile reads such a header at once
    path.write_bytes(gzip.compress(header.tobuf() + bytes(80 << 20)))
    with pytest.raises(DataError, match=r"NLMCXR_reports\.tgz unpacks to more than 64 MiB"):
        OpenI(root).records()
    path.unlink()
    with pytest.raises(DataError, match=r"neither ecgen-radiology/ nor NLMCXR_reports\.tgz; get the reports from"):
        OpenI(root).records()
    (root / "ecgen-radiology").mkdir()
    with pytest.raises(DataError, match="holds no report"):
        OpenI(root).records()


def test_what_is_not_there(tmp_path):
    root = _write(tmp_path)
    for path in root.rglob("*.png"):
        path.unlink()
    (root / "NLMCXR_png.tgz").touch()
    with pytest.raises(DataError, match=r"holds no PNG image.*NLMCXR_png\.tgz is there: unpack it"):
        OpenI(root).records()
    with pytest.raises(DataError, match="released in one part"):
        OpenI(root).records(pools=("train",))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("open_i") / "tree"
    return write_phantom("open_i", root, PhantomSpec(studies=120, size=48, seed=3))


def test_phantom_agrees_with_its_truth(phantom):
    records = OpenI(phantom).records("classification")
    truth = [json.loads(line) for line in (phantom / "truth/reports.jsonl").read_text().splitlines()]
    assert sorted(records.column("id")) == sorted(i for r in truth for i in r["images"])
    assert records.dropped.attrs["counts"] == {"report without an image": sum(not r["images"] for r in truth)}
    stated = {i: {n for n, v in r["mentions"].items() if v != 0} for r in truth for i in r["images"]}
    for row in records.table.to_pylist():
        for name in MESH_LABELS:
            if name not in ("Lung Opacity", "Support Devices"):
                assert row[name] == float(name in stated[row["id"]]), (row["id"], name)
    with (phantom / "truth/labels.csv").open() as file:
        flags = {row["image_id"]: row for row in csv.DictReader(file)}
    assert set(flags) == set(records.column("id"))


def test_data_module_on_a_phantom(phantom):
    data = OpenIDataModule(str(phantom), batch_size=4, image_size=32)
    data.setup("fit")
    assert data.train_set[0]["text"]
    labels = OpenIDataModule(str(phantom), task="classification", classes=["Cardiomegaly"], batch_size=4, image_size=32)
    labels.setup("fit")
    assert labels.label_names == ("Cardiomegaly",)
    # reports without text are left out after the split, which is that of all images
    assert data.split_result.sha256 == labels.split_result.sha256
    assert set(data.train_set.ids) <= set(labels.train_set.ids)
    with pytest.raises(ConfigError, match="sentence ends"):
        OpenIDataModule(str(phantom), cleaning="mgca", text_sampling="sentence")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The real reports, read from their archive, beside empty image files."""
    if not (SHARED / "openi_NLMCXR_reports.tgz").is_file():
        pytest.skip("shared/data/openi_NLMCXR_reports.tgz is not here")
    root = tmp_path_factory.mktemp("released")
    (root / "NLMCXR_reports.tgz").symlink_to(SHARED / "openi_NLMCXR_reports.tgz")
    (root / "NLMCXR_png").mkdir()
    return root


def test_released_reports(released):
    reports = {file.number: parse(file.data) for file in report_files(released, "")}
    assert len(reports) == 3_955
    sections = collections.Counter((bool(r.sections.findings), bool(r.sections.impression)) for r in reports.values())
    assert sections == {(True, True): 3_419, (False, True): 502, (True, False): 6, (False, False): 28}
    images = collections.Counter(len(r.images) for r in reports.values())
    assert images == {0: 104, 1: 446, 2: 3_208, 3: 181, 4: 15, 5: 1}
    labels = [r.labels for r in reports.values()]
    assert sum(not found for found in labels) == 95
    assert sum(found.get("No Finding", 0) for found in labels) == 1_391
    assert sum(found.get("Cardiomegaly", 0) for found in labels) > 375

    corpus = OpenI(released)
    assert make_split("open_i", "clean", corpus.listing()).verified  # no image is there yet
    for report in reports.values():
        for image in report.images:
            os.close(os.open(released / f"NLMCXR_png/{image}.png", os.O_CREAT))
    pairs = corpus.records("pairs")
    assert pairs.dropped.attrs["counts"]["report without an image"] == 104
    assert len(pairs) + sum(n for r, n in pairs.dropped.attrs["counts"].items() if "image" not in r) == 7_470
    assert not pairs.dropped["broken"].any()
