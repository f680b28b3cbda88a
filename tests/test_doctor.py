"""``medvlp doctor`` on sound and broken folders: what it says, what it exits with, and what it never does."""

import argparse
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from medvlp.datasets import CORPORA, corpus_class
from medvlp.datasets.base import Dropped, make_table
from medvlp.datasets.corpus import Corpus, Records
from medvlp.datasets.options import corpus_from_words
from medvlp.datasets.tables import TableSpec
from medvlp.doctor import LEVELS, Finding, add_arguments, diagnose, examine, run
from medvlp.doctor.command import printable, show
from medvlp.doctor.sums import verify_sums
from medvlp.errors import ConfigError
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.model import Difficulty

TEXT = "zweihaender quokka"


def doctor(name: str, root: str | Path, *words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(w) for w in (name, "--root", root, *words)]))


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    many = Difficulty(prevalence=4.0)
    for name in CORPORA:
        spec = PhantomSpec(studies=26 if name == "covidx" else 14, size=48, seed=3, difficulty=many)
        write_phantom(name, root / name, spec)
    return root


@pytest.fixture
def rsna(trees, tmp_path) -> Path:
    return Path(shutil.copytree(trees / "rsna", tmp_path / "rsna"))


@pytest.fixture
def mimic(trees, tmp_path) -> Path:
    return Path(shutil.copytree(trees / "mimic_cxr", tmp_path / "mimic"))


def checks(diagnosis, level):
    return {check.name: check for check in diagnosis.at(level)}


@pytest.mark.parametrize("name", list(CORPORA))
def test_every_phantom_is_in_order(trees, name, capsys):
    words = ["--option", "version=COVIDx9A"] if name == "covidx" else []
    assert doctor(name, trees / name, "--deep", "--workers", "1", *words) == 0
    out = capsys.readouterr().out
    assert "nothing that is needed is absent or corrupt" in out
    assert "a phantom of" in out
    assert f"medvlp prepare {name} --root {trees / name} --out CACHE" in out


def test_json_is_one_object_with_stable_keys(rsna, capsys):
    next((rsna / "stage_2_train_images").iterdir()).unlink()
    assert doctor("rsna", rsna, "--json") == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert set(result) == {"dataset", "root", "deep", "ok", "diagnoses"}
    assert result["ok"] is False
    (diagnosis,) = result["diagnoses"]
    assert set(diagnosis) == {
        *("dataset", "title", "root", "options", "phantom", "checks", "tasks", "splits", "images", "next", "ok"),
        "levels",
    }
    assert set(diagnosis["checks"][0]) == {"name", "level", "found", "expected", "remedy", "items"}
    assert set(diagnosis["levels"]) == set(LEVELS)
    assert diagnosis["levels"]["error"] == 1
    assert set(diagnosis["tasks"]) == set(corpus_class("rsna").tasks)
    assert {"made", "default", "counts", "sha256", "verified", "leaks", "reason"} == set(diagnosis["splits"]["clean"])
    assert diagnosis["images"]["files"] == 13


def test_missing_folder_names_where_to_get_it(tmp_path, capsys):
    assert doctor("rsna", tmp_path / "nowhere") == 1
    out = capsys.readouterr().out
    assert "does not exist" in out
    assert "Kaggle" in out
    assert "medvlp phantom rsna" in out
    assert doctor("covidx", tmp_path / "nowhere") == 1
    (tmp_path / "empty").mkdir()
    assert doctor("mimic_cxr", tmp_path / "empty") == 1
    (tmp_path / "file").write_text("")
    assert doctor("siim", tmp_path / "file") == 1


def test_usage_errors_exit_with_2(trees, capsys):
    assert doctor("rsna", trees / "rsna", "--option", "colour=red") == 2
    assert "colour" in capsys.readouterr().err
    assert doctor("rsna", trees / "rsna", "--option", "classes") == 2
    assert doctor("mimic_cxr", trees / "mimic_cxr", "--option", "min_tokens=few") == 2
    assert doctor("rsna", trees / "rsna", "--workers", "0") == 2
    with pytest.raises(SystemExit) as stop:
        doctor("imagenet", trees)
    assert stop.value.code == 2


def test_options_have_the_types_of_the_reader(trees):
    corpus = corpus_from_words("mimic_cxr", trees / "mimic_cxr", ["views=[PA,LATERAL]", "min_tokens=5", "labels=null"])
    assert (corpus.views, corpus.min_tokens, corpus.labels) == (("PA", "LATERAL"), 5, None)
    assert corpus_from_words("covidx", trees / "covidx", ["version=9"]).version == "9"
    with pytest.raises(ConfigError, match="version"):
        corpus_from_words("covidx", trees / "covidx", [])
    with pytest.raises(ConfigError, match="on_error"):
        corpus_from_words("rsna", trees / "rsna", ["on_error=skip"], on_error="skip")
    with pytest.raises(ConfigError, match="help"):
        corpus_from_words("rsna", trees / "rsna", ["help=1"])


def test_each_edition_of_covidx_is_examined(trees):
    diagnoses = diagnose("covidx", trees / "covidx", [])
    assert [d.options["version"] for d in diagnoses] == ["COVIDx8A", "COVIDx9A", "COVIDx9B", "kaggle"]
    assert [d.options["classes"] for d in diagnoses] == ["three", "three", "binary", "binary"]
    assert all(d.ok for d in diagnoses)
    (only,) = diagnose("covidx", trees / "covidx", ["version=COVIDx9B"])
    assert only.options == {"version": "COVIDx9B", "classes": "binary"}
    (absent,) = diagnose("covidx", trees / "covidx", ["version=COVIDx5"])
    assert not absent.ok


def test_broken_images_are_listed_by_reason(rsna):
    folder = rsna / "stage_2_train_images"
    zero, text, gone = sorted(folder.iterdir())[:3]
    zero.write_bytes(b"")
    text.write_text("404")
    gone.unlink()
    diagnosis = examine(corpus_class("rsna")(rsna))
    broken = [c for c in diagnosis.at("error") if c.name == "images broken"]
    assert {(c.found, c.items) for c in broken} == {
        ("1: zero-byte file", (f"stage_2_train_images/{zero.name}",)),
        ("1: not a JPEG, PNG or DICOM file", (f"stage_2_train_images/{text.name}",)),
    }
    (lost,) = [c for c in diagnosis.at("error") if c.name == "records broken"]
    assert "missing image file" in lost.found
    assert gone.stem in lost.items[0]
    assert diagnosis.next == [f"medvlp doctor rsna --root {rsna}"]


def test_a_damage_within_the_pixels_needs_deep(trees, tmp_path):
    root = Path(shutil.copytree(trees / "open_i", tmp_path / "open_i"))
    path = next((root / "NLMCXR_png").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    corpus = corpus_class("open_i")(root)
    assert examine(corpus).ok
    diagnosis = examine(corpus, deep=True)
    assert not diagnosis.ok
    assert checks(diagnosis, "error")["images broken"].items == (f"NLMCXR_png/{path.name}",)


def test_odd_pictures_are_a_suspicion_and_no_error(mimic):
    named = corpus_class("mimic_cxr")(mimic).records("pairs").table.column("image").to_pylist()
    constant, cut = Path(named[0]), Path(named[1])
    Image.new("L", (48, 48), 90).save(constant)
    with Image.open(cut) as image:
        image.load()
    image.paste(128, (0, 32, image.width, image.height))
    image.save(cut.with_suffix(".png"))
    cut.with_suffix(".png").rename(cut)
    diagnosis = examine(corpus_class("mimic_cxr")(mimic), deep=True)
    assert "images broken" not in checks(diagnosis, "error")  # the checksums are another matter
    found = {check.found: check.items for check in diagnosis.checks if check.name == "images suspicious"}
    assert set(found) == {"1: constant: every pixel is 90", "1: the last 16 rows are 128 throughout"}
    assert not [check for check in examine(corpus_class("mimic_cxr")(mimic)).checks if "suspicious" in check.name]


def test_checksums_are_verified_only_in_deep(mimic):
    (mimic / "README").write_text("another text")
    (mimic / "LICENSE.txt").unlink()
    corpus = corpus_class("mimic_cxr")(mimic)
    assert examine(corpus).ok
    diagnosis = examine(corpus, deep=True)
    assert checks(diagnosis, "error")["checksums"].items == ("README",)
    assert checks(diagnosis, "note")["checksums"].items == ("LICENSE.txt",)


def test_checksum_files_of_every_usual_form(tmp_path):
    (tmp_path / "a b").mkdir()
    for name in ("one", "two", "a b/three"):
        (tmp_path / name).write_text(name)
    one, two, three = (hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two", "a b/three"))
    lines = [f"{one}  one", f"{two.upper()} *./two", f"SHA256 (a b/three) = {three}", "", "# words", f"{one}  two"]
    lines += [f"{one}  ../one", "words", f"{one[:-1]}  one", f"{one}  four", f"{one}  one/two", f"{one}  a b"]
    (tmp_path / "SHA256SUMS").write_text("\ufeff" + "\r\n".join(lines))
    ((_, states, _),) = verify_sums(tmp_path)
    assert (len(states["right"]), states["wrong"]) == (3, ["two", "a b"])
    assert (states["unread"], states["absent"]) == (["line 7", "line 8", "line 9"], ["four", "one/two"])
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff")
    assert [problem for *_, problem in verify_sums(tmp_path)] == ["cannot be read (UnicodeDecodeError)"]


def test_optional_tables_are_notes_that_say_what_for(trees, tmp_path):
    root = Path(shutil.copytree(trees / "chexpert", tmp_path / "chexpert"))
    (root / "df_chexpert_plus_240401.csv").unlink()
    (root / "phantom.json").write_text(json.dumps({"layout": "chexpert", "studies": 14}))
    diagnosis = examine(corpus_class("chexpert")(root))
    assert diagnosis.ok
    assert "pairs" in checks(diagnosis, "note")["table df_chexpert_plus_240401.csv"].found
    assert not diagnosis.tasks["pairs"].runs
    assert diagnosis.tasks["classification"].runs
    (root / "train.csv").unlink()
    assert not examine(corpus_class("chexpert")(root)).ok


def test_without_a_manifest_the_counts_of_the_release_are_expected(rsna):
    (rsna / "phantom.json").unlink()
    diagnosis = examine(corpus_class("rsna")(rsna))
    errors = checks(diagnosis, "error")
    assert "rows are missing" in errors["table stage_2_train_labels.csv"].found
    assert errors["table stage_2_train_labels.csv"].expected == "30,227 (stage 2) rows"
    assert "are missing" in checks(diagnosis, "warning")["folder stage_2_train_images"].found
    assert "expected 26,684" in errors["split g2d"].found


def test_phantoms_cut_short_or_of_another_layout_are_errors(rsna):
    (rsna / "truth" / "labels.csv").unlink()
    assert examine(corpus_class("rsna")(rsna)).ok
    shutil.rmtree(rsna / "truth")
    assert checks(examine(corpus_class("rsna")(rsna)), "warning")["phantom"].items == ("truth",)
    manifest = rsna / "phantom.json"
    manifest.write_text(json.dumps({"layout": "siim", "studies": 14}))
    assert "layout of siim" in checks(examine(corpus_class("rsna")(rsna)), "error")["phantom"].found
    manifest.write_text("[]")
    assert "cannot be read" in checks(examine(corpus_class("rsna")(rsna)), "error")["phantom"].found
    manifest.rename(rsna / "phantom.json.partial")
    remedy = checks(examine(corpus_class("rsna")(rsna)), "error")["phantom"].remedy
    assert remedy == f"write it again: medvlp phantom rsna --root {rsna} --overwrite"


def test_links_out_of_the_folder_warn_and_stray_files_are_noted(rsna, tmp_path):
    folder = rsna / "stage_2_train_images"
    path = next(folder.iterdir())
    (tmp_path / "elsewhere").mkdir()
    shutil.move(path, tmp_path / "elsewhere" / path.name)
    path.symlink_to(tmp_path / "elsewhere" / path.name)
    shutil.copy(tmp_path / "elsewhere" / path.name, folder / "stray.dcm")
    diagnosis = examine(corpus_class("rsna")(rsna))
    assert diagnosis.ok
    assert checks(diagnosis, "warning")["images linked"].items == (f"stage_2_train_images/{path.name}",)
    assert checks(diagnosis, "note")["images unnamed"].items == ("stage_2_train_images/stray.dcm",)
    assert diagnosis.images.unnamed == 1


def test_images_under_another_root_may_lie_there(trees, tmp_path):
    root = Path(shutil.copytree(trees / "ms_cxr", tmp_path / "ms_cxr"))
    shutil.move(root / "files", tmp_path / "mimic" / "files")
    (diagnosis,) = diagnose("ms_cxr", root, [f"mimic_root={tmp_path / 'mimic'}"])
    assert diagnosis.ok
    assert not list(diagnosis.at("warning"))[1:]
    assert f"--option mimic_root={tmp_path / 'mimic'}" in diagnosis.next[0]


def test_sizes_are_held_against_the_released_columns(mimic):
    from PIL import Image

    path = next(p for p in sorted((mimic / "files").rglob("*.jpg")))
    corpus = corpus_class("mimic_cxr")(mimic, views=["PA", "AP", "LATERAL", ""])
    Image.open(path).resize((40, 40)).save(path)
    assert checks(examine(corpus), "warning")["image sizes"].items == (str(path.relative_to(mimic)),)
    for other in (mimic / "files").rglob("*.jpg"):
        Image.open(other).resize((40, 40)).save(other)
    assert "resized copy" in checks(examine(corpus), "note")["image sizes"].found


def test_leaks_of_published_splits_are_told_with_their_numbers(trees):
    leaks = examine(corpus_class("mimic_cxr")(trees / "mimic_cxr")).splits["mgca"].leaks
    assert leaks["images validate&test"] > 0, "MGCA validates on its test images"
    diagnosis = examine(corpus_class("cxr14")(trees / "cxr14"))
    assert all(len(h) == 12 for state in diagnosis.splits.values() for h in state.sha256.values())
    lists = diagnosis.splits["maco"]
    assert not lists.made
    assert "train_list.txt" in lists.reason


def test_report_text_never_appears(mimic, capsys):
    for path in (mimic / "files").rglob("*.txt"):
        path.write_text(f" FINAL REPORT\n FINDINGS:\n {TEXT} is seen in both lungs. \x1b[31m\n")
    next((mimic / "files").rglob("*.txt")).write_bytes(f"FINDINGS: {TEXT} ".encode() + b"\xff\xfe")
    for words in ((), ("--json",), ("--deep",)):
        assert doctor("mimic_cxr", mimic, *words) == 1
        captured = capsys.readouterr()
        assert TEXT not in captured.out + captured.err
        assert "undecodable report file" in captured.out


def test_reports_that_are_damaged_in_their_archive_are_broken_items(mimic):
    path = mimic / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for report in sorted((mimic / "files").rglob("*.txt")):
            archive.write(report, str(report.relative_to(mimic)))
            report.unlink()
        places = [(i.filename, i.header_offset + 30 + len(i.filename)) for i in archive.infolist()]
    corpus = corpus_class("mimic_cxr")(mimic)
    assert examine(corpus).ok
    data = bytearray(path.read_bytes())
    for _, start in places[::2]:
        data[start : start + 20] = bytes(range(20))
    path.write_bytes(data)
    (lost,) = examine(corpus).at("error")
    assert "damaged in mimic-cxr-reports.zip" in lost.found
    assert lost.items
    path.write_bytes(data[: len(data) // 2])
    assert "not a readable zip file" in checks(examine(corpus), "error")["task pairs"].found


class Faulty(Corpus):
    """A reader with a bug, and an annotation that no reader checked."""

    name, title, source = "open_i", "Faulty", "nowhere"
    tasks = ("segmentation", "classification")
    tables = (TableSpec("listed.csv", ("a", "b"), rows={2: "1.0"}),)
    image_folders = ("images",)

    def records(self, task=None, pools=None) -> Records:
        if task == "classification":
            raise KeyError(TEXT)
        image = str(self.root / "images" / "1.png")
        table: pa.Table = make_table(
            {"id": ["1"], "image": [image]},
            boxes=[[(1, 1, 90, 5)]],
            box_labels=[[0]],
            shapes=[["rectangle 1 1 5 5", "rle 4000 9"]],
        )
        return Records(table, Dropped().frame())


@pytest.fixture
def faulty(trees, tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    shutil.copy(next((trees / "open_i" / "NLMCXR_png").iterdir()), tmp_path / "images" / "1.png")
    (tmp_path / "listed.csv").write_text("a,b\n1,2\n3,4\n")
    return tmp_path


def test_a_fault_of_a_reader_is_an_error_and_not_an_exception(faulty):
    diagnosis = examine(Faulty(faulty))
    fault = checks(diagnosis, "error")["task classification"]
    assert "KeyError (test_doctor.py, line" in fault.found
    assert "report it" in fault.remedy
    assert TEXT not in json.dumps(diagnosis.as_dict())
    assert "2 rows (1.0)" in checks(diagnosis, "ok")["table listed.csv"].found


def test_a_corpus_adds_its_own_checks(faulty):
    class Checked(Faulty):
        checks = (lambda case: [Finding("ages", "note", f"{len(case.records)} task has records")],)

    assert examine(Checked(faulty)).checks[-1].found == "1 task has records"


def test_annotations_are_held_against_the_real_size(faulty):
    errors = [c.found for c in examine(Faulty(faulty)).at("error") if c.name == "annotations"]
    assert errors == ["1 images: RLE runs past the image", "1 images: box outside the image"]


def test_row_counts_that_no_release_has(faulty):
    (faulty / "listed.csv").write_text("a,b\n1,2\n")
    few = checks(examine(Faulty(faulty)), "error")["table listed.csv"]
    assert few.found == "1 rows: 1 rows are missing, or the file is another version"
    assert few.expected == "2 (1.0) rows"
    (faulty / "listed.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    assert "1 rows too many" in checks(examine(Faulty(faulty)), "warning")["table listed.csv"].found


def test_progress_counts_up_to_the_number_of_images(rsna):
    calls: list[tuple[str, int, int]] = []
    examine(corpus_class("rsna")(rsna), progress=lambda *call: calls.append(call))
    images = [(done, total) for stage, done, total in calls if stage == "reading image headers"]
    assert images == [(n, 14) for n in range(1, 15)]


def test_narrow_terminals_lose_nothing_and_control_characters_are_shown(rsna):
    for path in (rsna / "stage_2_train_images").iterdir():
        path.unlink()
    diagnosis = examine(corpus_class("rsna")(rsna))
    for width, terminal in ((30, True), (200, True), (30, False)):
        console = Console(width=width, force_terminal=terminal, record=True, file=io.StringIO())
        show(diagnosis, console)
        text = "".join(console.export_text().split())
        assert all("".join(check.found.split()) in text for check in diagnosis.checks)
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_roots_are_spelled_in_any_way(trees, name, tmp_path, monkeypatch, capsys):
    """Relative, with a blank and a letter beyond ASCII, through a link, with ``..``: the files are the same."""
    (tmp_path / "ä b").mkdir()
    root = Path(shutil.copytree(trees / name, tmp_path / "ä b" / name))
    (tmp_path / "link").symlink_to(root.parent, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    shown = []
    for spelled in (root, f"ä b/{name}", f"ä b/../ä b/{name}", f"link/{name}", f"link/../ä b/{name}"):
        code = doctor(name, spelled, "--json")
        found = json.loads(capsys.readouterr().out)["diagnoses"]
        shown.append((code, [(one["images"], [check["name"] for check in one["checks"]]) for one in found]))
    for other in shown:
        assert other == shown[0]
