"""What is in the page: everything of its own, nothing from elsewhere, whatever is missing beside the results."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_benchmark import METHODS, RUNS, arrays_of, rows_of, value_of, write_benchmark

from medvlp.benchmark.report.page import write_report
from medvlp.errors import ConfigError, DataError

VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Elements of a page, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def report(results: Path, **options) -> tuple[Page, str]:
    text = write_report(results, resamples=0, **options).path.read_text(encoding="utf-8")
    return Page(text), text


def test_everything_is_in_one_file(benchmark):
    made = write_report(benchmark, resamples=0)
    text = made.path.read_text(encoding="utf-8")
    page = Page(text)
    assert made.path == benchmark.with_name("report.html")
    assert made.pictures == len(page.all("img")) == 3 * 3 * 3
    assert all(picture["src"].startswith("data:image/") and picture["alt"] for picture in page.all("img"))
    assert not page.all("link")
    assert not any("src" in script for script in page.all("script"))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", text)
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert not list(benchmark.parent.glob("*.part"))


def test_the_frame_of_the_page(benchmark):
    page, _text = report(benchmark)
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("header")) == len(page.all("nav")) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert all(cell["scope"] for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)


def test_the_head_says_where_the_numbers_come_from(benchmark):
    page, _ = report(benchmark)
    for words in (
        "A small head-to-head",
        "3 done, 1 failed",
        "medvlp 0.1.0, torch 2.14.1",
        "2 x CPU",
        "chexpert own abababababab",
        "They say nothing about clinical performance",
        "loss became NaN",
    ):
        assert words in page.words


def test_real_data_has_no_phantom_warning_and_mixed_data_names_the_phantoms(tmp_path):
    page, _ = report(write_benchmark(tmp_path / "real", rows_of(phantom=False), grid=False, pictures=False))
    assert "clinical performance" not in page.words
    mixed = [row | {"notes": {"data": {"phantom": row["dataset"] == "siim"}}} for row in rows_of()]
    page, _ = report(write_benchmark(tmp_path / "mixed", mixed, grid=False, pictures=False))
    assert "Numbers on siim come from the phantom" in page.words


def test_every_value_leads_to_rows_with_its_hashes_and_seeds(benchmark):
    page, text = report(benchmark)
    links = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#rows-")]
    details = {d["id"]: d for d in page.all("details") if "id" in d}
    assert len(links) > 40
    assert set(links) == set(details)
    rows = text[text.index('id="rows"') :]
    group = rows[rows.index('data-task="seg_siim" data-protocol="frozen" data-fraction="0.01" data-method="g2d"') :]
    group = " ".join(Page(group[group.index("<table") : group.index("</table>")] + "</table>").words.split())
    for words in ("pretrain 0, data 2, head 0", "cdcdcdcdcdcd", "pre-g2d", "0" * 12, "own abababababab"):
        assert words in group
    for run in RUNS:
        assert f"{value_of('g2d', 'seg_siim', 0.01, run):.4f}" in group


def test_charts_say_their_numbers_and_follow_the_tables(benchmark):
    page, text = report(benchmark)
    labels = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    curve = next(label for label in labels if label.startswith("Learning curves, seg_siim"))
    mean = 100 * np.mean([value_of("mgca", "seg_siim", 0.1, run) for run in RUNS])
    assert "MGCA: " in curve
    assert f"{mean:.1f} ± 3.0 at 10 %" in curve
    assert f">{mean:.1f}</a>" in text
    cost = next(label for label in labels if label.startswith("Score and time of pre-training, seg_siim"))
    assert "after 20 min" in cost
    assert "Random" in cost
    assert "no pre-training here" in cost
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in page.all("svg"))


def test_methods_that_share_a_pretraining_share_its_cost(benchmark):
    page, text = report(benchmark)
    table = text[text.index('<section id="cost"') :]
    rows = re.findall(r'<tr data-method="(\w+)">(.*?)</tr>', table[: table.index("</table>")], re.S)
    costs = {name: re.findall(r'data-sort="([\d.]+)"', cells)[1:7] for name, cells in rows}
    assert costs["g2d"] == costs["g2d_decoder"] == ["1800", "13.333333", "1100", "30000000", "25000000", "0.033"]
    assert "assumed constant power of 65 W" in page.words


def test_texts_of_a_grid_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    rows = rows_of()
    for row in rows:
        row["benchmark"]["title"] = evil
        row["notes"] = {}
        row["hardware"] = evil
    results = write_benchmark(tmp_path / evil.replace("/", ""), rows)
    grid = json.loads(results.with_name("grid.json").read_text())
    grid["methods"] = dict.fromkeys(METHODS, evil)
    grid["tasks"] = {name: task | {"title": evil} for name, task in grid["tasks"].items()}
    grid["jobs"][-1] |= {"error": evil, "log": evil, "title": evil}
    grid["title"] = evil
    results.with_name("grid.json").write_text(json.dumps(grid))
    page, text = report(results)
    assert len(page.all("script")) == 1
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&lt;/script&gt;", "", text)
    assert evil in page.words


def test_one_run_without_anything_beside_it(single_run):
    page, _ = report(single_run, title="Ours")
    assert "Ours" in page.words
    assert "41.0" in page.words
    headings = [a["id"] for a in page.all("section")]
    assert {"results", "rows"} <= set(headings)
    assert not {"curves", "classes", "cost", "pictures", "jobs"} & set(headings)


def test_a_benchmark_without_grid_or_pictures(tmp_path):
    page, _ = report(write_benchmark(tmp_path, grid=False, pictures=False))
    headings = {a["id"] for a in page.all("section")}
    assert {"curves", "classes"} <= headings
    assert not {"cost", "pictures", "jobs"} & headings


def test_pictures_that_did_not_come_along_are_named(benchmark):
    next((benchmark.parent / "panels").glob("mgca-seg*")).unlink()
    with pytest.warns(UserWarning, match="mgca-seg_siim"):
        made = write_report(benchmark, resamples=0)
    assert made.lost == ("mgca-seg_siim.npz",)
    assert "mgca-seg_siim.npz" in Page(made.path.read_text()).words


def test_of_a_long_identifier_both_ends_are_shown(benchmark):
    long = "1.2.276.0.7230010.3.1.4.8323329.641.1517875160.643713"
    arrays = arrays_of("segmentation", 0.1) | {"ids": np.array([long, "00000013_005.png", "image-1"])}
    np.savez(benchmark.parent / "panels" / "g2d-seg_siim.npz", **arrays)
    _, text = report(benchmark)
    assert f'<abbr title="{long}">1.2.276.…0.643713</abbr>' in text
    assert ">00000013_005.png</th>" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"masks": None}, "has no masks"),
        ({"masks": np.zeros((3, 9, 9), bool)}, "masks has the shape"),
        ({"images": np.zeros((3, 64, 64))}, "not uint8"),
        ({"ids": np.array(["a"])}, "ids has the shape"),
    ],
)
def test_a_broken_file_of_pictures_is_an_error(benchmark, change, words):
    arrays = {k: v for k, v in (arrays_of("segmentation", 0.1) | change).items() if v is not None}
    np.savez(benchmark.parent / "panels" / "g2d-seg_siim.npz", **arrays)
    with pytest.raises(DataError, match=f"g2d-seg_siim.npz: .*{words}"):
        write_report(benchmark, resamples=0)


def test_a_file_that_is_no_npz_is_an_error(benchmark):
    (benchmark.parent / "panels" / "g2d-seg_siim.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"g2d-seg_siim.npz: not readable"):
        write_report(benchmark, resamples=0)


def test_a_page_that_cannot_be_written_is_an_error(benchmark):
    with pytest.raises(DataError, match="cannot be written"):
        write_report(benchmark, benchmark / "report.html", resamples=0)


def test_a_broken_grid_file_names_the_job(benchmark):
    grid = json.loads(benchmark.with_name("grid.json").read_text())
    del grid["jobs"][1]["state"]
    benchmark.with_name("grid.json").write_text(json.dumps(grid))
    with pytest.raises(DataError, match=r"grid.json: jobs\[1\] has no state"):
        write_report(benchmark, resamples=0)


def test_command(benchmark, tmp_path, capsys):
    import argparse

    from medvlp.benchmark.report import command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    output = tmp_path / "new" / "page.html"
    args = [str(benchmark), "--output", str(output), "--title", "Mine", "--resamples", "0"]
    assert command.run(parser.parse_args(args)) == 0
    assert "<h1>Mine</h1>" in output.read_text()
    assert "27 pictures" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--resamples -1"):
        command.run(parser.parse_args([str(benchmark), "--resamples", "-1"]))


def test_a_papers_numbers_stand_beside_the_phantom_only_if_asked_for(tmp_path):
    results = write_benchmark(tmp_path / "drawn", pictures=False)
    _page, text = report(results)
    assert 'class="paper"' not in text
    assert "left out" in text
    page, text = report(results, beside_phantom=True)
    assert 'class="paper"' in text
    assert page.words.count("PHANTOM BESIDE PAPER") >= text.count("<strong>G2D, Table")
    assert 'class="paper"' in report(write_benchmark(tmp_path / "real", rows_of(phantom=False), pictures=False))[1]
