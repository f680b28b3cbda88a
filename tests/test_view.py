"""``medvlp view``: the pictures and the page that it writes."""

import argparse
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlp import viz
from medvlp.datasets import CORPORA, corpus_class
from medvlp.errors import ConfigError, DataError
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.model import Difficulty
from medvlp.view import PER_SHEET, add_arguments, choose, run, view


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    many = Difficulty(prevalence=4.0)
    for name in CORPORA:
        spec = PhantomSpec(studies=26 if name == "covidx" else 14, size=48, seed=3, difficulty=many)
        write_phantom(name, root / name, spec)
    return root


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def command(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(w) for w in words]))


@pytest.mark.parametrize("name", list(CORPORA))
def test_every_corpus_gives_sheets_and_a_page(trees, tmp_path, name, capsys):
    words = ["--option", "version=COVIDx9A"] if name == "covidx" else []
    assert command(name, trees / name, "--out", tmp_path, "--count", "4", "--size", "64", *words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}: 4 samples\n"
    page = Page(tmp_path / "index.html")
    assert len(page.all("img")) == 4
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for a in page.all("img"))
    assert not page.all("script")
    assert not page.all("link")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.html", "sheet-1.png"]
    with Image.open(tmp_path / "sheet-1.png") as sheet:
        assert min(sheet.size) > 200


def test_the_same_seed_gives_the_same_page_and_another_one_another(trees, tmp_path):
    corpus = corpus_class("rsna")(trees / "rsna")
    pages = [view(corpus, tmp_path / str(n), count=5, seed=s).page.read_bytes() for n, s in enumerate((1, 1, 2))]
    assert pages[0] == pages[1] != pages[2]


def test_a_part_of_a_split_and_no_text(trees, tmp_path):
    corpus = corpus_class("mimic_cxr")(trees / "mimic_cxr")
    result = view(corpus, tmp_path, split="official", part="train", count=3)
    assert all("pool train" in card.facts for card in result.cards)
    texts = [card.text for card in result.cards]
    assert all(text.removesuffix(" …")[:20] in result.page.read_text() for text in texts)
    bare = view(corpus, tmp_path, split="official", part="train", count=3, text=False)
    assert not any(card.text for card in bare.cards)
    assert not any(text[:20] in bare.page.read_text() for text in texts)


def test_unknown_names_and_bad_numbers_are_errors(trees, tmp_path):
    corpus = corpus_class("siim")(trees / "siim")
    with pytest.raises(ConfigError, match="g2d"):
        view(corpus, tmp_path, split="official")
    with pytest.raises(ConfigError, match="count"):
        view(corpus, tmp_path, count=0)
    with pytest.raises(ConfigError, match="labels for pairs"):
        view(corpus, tmp_path, task="pairs")
    with pytest.raises(DataError, match="does not exist"):
        view(corpus_class("siim")(tmp_path / "nowhere"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unreadable_images_are_shown_as_such_and_counted(trees, tmp_path, capsys):
    root = Path(shutil.copytree(trees / "open_i", tmp_path / "open_i"))
    for path in sorted((root / "NLMCXR_png").iterdir())[:3]:
        path.write_bytes(b"")
    assert command("open_i", root, "--out", tmp_path / "out", "--count", "99") == 0
    assert "3 of them unreadable" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("cannot be read: zero-byte file") == 3
    assert "3 of them cannot be read" in page


def test_everything_from_the_files_is_escaped(trees, tmp_path):
    root = Path(shutil.copytree(trees / "mimic_cxr", tmp_path / "mimic"))
    for path in (root / "files").rglob("*.txt"):
        path.write_text(' FINAL REPORT\n FINDINGS:\n <script>alert("x")</script> & "quoted" lungs are clear.\n')
    result = view(corpus_class("mimic_cxr")(root), tmp_path / "out", count=2)
    text = result.page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert '<script>alert("x")</script>' in Page(result.page).text


def test_old_sheets_go_and_other_files_stay(trees, tmp_path):
    (tmp_path / "sheet-7.png").write_bytes(b"old")
    (tmp_path / "sheet-mine.png").write_bytes(b"mine")
    corpus = corpus_class("ms_cxr")(trees / "ms_cxr")
    result = view(corpus, tmp_path, count=PER_SHEET + 1, size=32)
    names = sorted(p.name for p in tmp_path.iterdir())
    expected = 1 + (len(result.cards) > PER_SHEET)
    assert names == ["index.html", *(f"sheet-{n + 1}.png" for n in range(expected)), "sheet-mine.png"]
    assert [p.name for p in result.sheets] == names[1:-1]


def test_choice_shows_every_label_and_is_seeded():
    labels = np.full((1000, 4), 0, dtype=np.float32)
    labels[3, 0] = labels[500, 1] = labels[501, 1] = 1
    labels[10:900, 2] = 1
    labels[5, 3] = -1
    chosen = choose(labels, 5, 0)
    assert len(chosen) == 5
    assert 3 in chosen
    assert {500, 501} & set(chosen)
    assert (labels[chosen].max(1) <= 0).any(), "one without a label"
    assert (np.diff(chosen) > 0).all()
    assert (choose(labels, 5, 0) == chosen).all()
    assert (choose(labels, 5, 1) != chosen).any()
    assert len(choose(labels, 5000, 0)) == 1000
    assert choose(np.zeros((7, 0), np.float32), 3, 0).shape == (3,)


def test_marks_lie_where_the_annotation_is():
    image = np.full((40, 80), 90, np.uint8)
    mask = np.zeros((40, 80), bool)
    mask[10:20, 40:60] = True
    picture = viz.annotated(image, size=160, mask=mask)
    assert picture.shape == (80, 160, 3)
    blue = picture[..., 2] > 200
    rows, columns = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 39, 80, 119)
    assert not blue[25:35, 90:110].any(), "only the outline"
    boxed = viz.annotated(image, size=160, boxes=np.array([[10, 5, 30, 35]]), names=["a"])
    orange = (boxed == (255, 176, 0)).all(-1)
    rows, columns = np.flatnonzero(orange.any(1)), np.flatnonzero(orange.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 69, 20, 59)
    assert (viz.annotated(image, size=160) == 90).all()
    # a mask of one pixel of a large image does not vanish
    dot = np.zeros((400, 400), bool)
    dot[201, 201] = True
    assert (viz.annotated(np.zeros((400, 400), np.uint8), size=64, mask=dot)[..., 2] > 200).sum() >= 1


def test_sheet_has_a_cell_for_each_picture():
    figure = viz.contact_sheet(
        [np.zeros((8, 8, 3), np.uint8), None, np.zeros((8, 4, 3), np.uint8)], ["a $1 $2", "b", ""]
    )
    texts = [t.get_text() for axis in figure.axes for t in axis.texts]
    assert "unreadable" in texts
    assert "a $1 $2" in texts
    assert len(figure.axes) == 3
