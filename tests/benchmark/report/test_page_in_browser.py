"""The page in a real browser: it runs, sorts, filters, shows, prints, and is accessible."""

import re
import shutil
from pathlib import Path

import pytest
from small_benchmark import METHODS, write_benchmark

from medvlp.benchmark.report.page import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_report(write_benchmark(tmp_path_factory.mktemp("page") / "benchmark"), resamples=0).path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=BROWSER, args=ARGUMENTS, headless=True
        )
        yield context
        context.close()


@pytest.fixture
def page(browser, written):
    """The open page; the test fails if the browser complains or anything is loaded from elsewhere."""
    faults, requests = [], []
    page = browser.new_page()
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: requests.append(request.url))
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(written.as_uri())
    yield page
    page.close()
    assert faults == []
    assert [url[:80] for url in requests if not url.startswith(("file://", "data:"))] == []


def column(page, table: str, number: int) -> list[float]:
    """Sort keys of a column in the order of the visible rows."""
    cells = page.locator(f"#{table} tbody tr:visible > :nth-child({number})")
    return [float(key) for key in cells.evaluate_all("all => all.map(cell => cell.dataset.sort ?? 'nan')")]


def visible(page, selector: str) -> int:
    return page.locator(f"{selector}:visible").count()


def test_sorting_by_click_and_by_keyboard(page):
    header = page.locator("#own-segmentation thead th", has_text="10 %").last
    button = header.get_by_role("button")
    before = column(page, "own-segmentation", 3)
    assert header.get_attribute("aria-sort") == "none"
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, "own-segmentation", 3) == sorted(before, reverse=True) != before
    button.focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, "own-segmentation", 3) == sorted(before)
    names = page.locator("#own-segmentation thead th").first
    names.get_by_role("button").click()
    assert (names.get_attribute("aria-sort"), header.get_attribute("aria-sort")) == ("ascending", "none")
    titles = page.locator("#own-segmentation tbody th").all_inner_texts()
    assert titles == sorted(titles, key=str.lower)
    assert set(titles) == set(METHODS.values())


def test_cells_without_a_value_are_last_in_both_orders(page):
    button = page.locator("#own-grounding thead th.leaf button")
    for _ in range(2):
        button.click()
        values = column(page, "own-grounding", 2)
        assert [value != value for value in values] == [False] * 4 + [True]


def test_a_papers_blocks_are_sorted_among_themselves(page):
    before = page.locator("#g2d-1 tr.block").all_inner_texts()
    inside = page.locator("#g2d-1 tbody").first.locator("tr > th").all_inner_texts()
    page.locator("#g2d-1 thead th.leaf button").first.click()
    after = page.locator("#g2d-1 tbody").first.locator("tr > th").all_inner_texts()
    assert page.locator("#g2d-1 tr.block").all_inner_texts() == before
    assert sorted(after) == sorted(inside)
    assert after != inside
    assert after[0] == inside[0]


def test_filter_by_task(page):
    page.select_option("select[name=task]", "seg_siim")
    assert visible(page, "#results table") == 1
    assert page.locator("#own-segmentation").is_visible()
    assert visible(page, "#curves figure") == 1
    assert visible(page, "#pictures article") == 1
    assert page.locator("#classes .none").is_visible()
    assert visible(page, "#rows details") == 15
    assert "15 of" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelectorAll('#results table').length == 5")
    assert visible(page, "#results table") == 5


def test_filter_by_fraction_takes_columns_out(page):
    page.select_option("select[name=fraction]", "0.1")
    assert page.locator("#own-segmentation thead th.leaf:visible").all_inner_texts() == ["10 %"]
    assert [th.get_attribute("colspan") for th in page.locator("#own-segmentation thead th[scope=colgroup]").all()] == [
        "1",
        "1",
    ]
    widths = page.locator("#own-segmentation tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].filter(cell => cell.offsetWidth).length)"
    )
    assert set(widths) == {2}
    assert not page.locator("#own-grounding").is_visible()


def test_filter_by_protocol(page):
    page.select_option("select[name=protocol]", "default")
    assert sorted(page.locator("#results article:visible").evaluate_all("all => all.map(one => one.id)")) == [
        "own-grounding",
        "own-zero_shot",
    ]


def test_filter_by_method(page):
    for method in ("random", "convirt", "g2d_decoder"):
        page.uncheck(f"input[value={method}]")
    assert page.locator("#own-segmentation tbody th:visible").all_inner_texts() == ["MGCA", "G2D"]
    assert visible(page, "#curves figure >> nth=0 >> g[data-method]") == 2
    assert page.locator("#classes thead th:visible").all_inner_texts()[1:] == ["MGCA", "G2D"]
    page.uncheck("input[value=mgca]")
    assert page.locator("#pictures article:first-child thead th:visible").all_inner_texts() == ["Image", "Truth", "G2D"]


def test_a_cell_leads_to_its_rows(page):
    link = page.locator("#own-segmentation tbody tr >> nth=3 >> a >> nth=0")
    target = page.locator(link.get_attribute("href"))
    assert target.get_attribute("open") is None
    link.click()
    page.wait_for_function("document.activeElement.tagName == 'SUMMARY'")
    assert target.get_attribute("open") is not None
    assert target.get_attribute("data-method") == "g2d"
    assert "config" in target.inner_text()
    assert "checkpoint" in target.inner_text()


def test_pictures_load_and_have_texts(page):
    pictures = page.locator("img").evaluate_all("all => all.map(one => [one.complete, one.naturalWidth, one.alt])")
    assert len(pictures) == 27
    assert all(complete and width > 0 for complete, width, _ in pictures)
    texts = [alt for *_, alt in pictures]
    assert len(set(texts)) > 20
    assert all(len(alt) > 20 for alt in texts)
    assert any(re.search(r"G2D on image-0: .*Dice 0\.\d\d", alt) for alt in texts)


def test_it_prints(page):
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 3
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("#own-segmentation table").is_visible()
    cut = page.locator(".scroll").evaluate_all("all => all.map(one => getComputedStyle(one).overflowX)")
    assert set(cut) == {"visible"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page, written, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page.emulate_media(color_scheme=scheme)
    page.goto(written.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one, n) => { if (n < 40) one.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    grave = [
        f"{fault['id']} ({fault['impact']}): {fault['nodes'][0]['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    button = page.locator("#own-segmentation thead button").first
    page.keyboard.press("Tab")
    button.focus()
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_narrow_screen(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("#filters").is_visible()
    assert page.locator("#own-segmentation table").is_visible()
