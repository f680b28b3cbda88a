"""experiments/benchmark/smoke.yaml as a user runs it: two methods, every task, every format, verified."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medvlp.benchmark.rows import collected
from medvlp.tasks.catalog import TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke(command, tmp_path_factory):
    """The results, in a folder that sees the repository's experiments."""
    folder = tmp_path_factory.mktemp("smoke")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    command("benchmark", "run", "-c", "experiments/benchmark/smoke.yaml", cwd=folder).ok()
    return folder / "runs" / "benchmark" / "smoke" / "results.jsonl"


@pytest.mark.slow
def test_every_task_of_both_methods(smoke):
    frame = collected(smoke)
    assert set(frame["bm_method"]) == {"convirt", "g2d"}
    assert set(frame["task"]) == set(TASKS)
    assert frame.groupby("bm_task")["bm_method"].nunique().eq(2).all()
    panels = json.loads((smoke.parent / "grid.json").read_text())["panels"]
    assert {panel["kind"] for panel in panels} == {"segmentation", "detection", "grounding"}


@pytest.mark.slow
def test_all_of_it_verifies(smoke, command):
    assert "all of it holds" in command("benchmark", "verify", smoke).ok().out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "html"])
def test_tables_in_every_format(smoke, command, form):
    shown = command("benchmark", "table", smoke, "--layout", "all", "--format", form, "--resamples", 50).ok().out
    assert "G2D" in shown
    assert "ConVIRT" in shown


@pytest.mark.slow
def test_the_page(smoke, command, tmp_path):
    page = tmp_path / "report.html"
    command("benchmark", "report", smoke, "--output", page, "--cache", tmp_path / "resampled").ok()
    assert any((tmp_path / "resampled").iterdir())
    text = page.read_text()
    HTMLParser().feed(text)
    assert "say nothing about clinical performance" in " ".join(text.split())
    assert text.count("data:image/") >= 6, "two images of three tasks"
