"""Rows that no table can show are counted and named, and rows of several versions are told apart."""

import argparse
import json

import pytest
from made_results import write
from printed_tables import from_csv, result_row
from small_benchmark import write_benchmark

from medvlp.benchmark import compare, table_command
from medvlp.benchmark.report.page import write_report
from medvlp.errors import ConfigError

CAPTIONS = [
    result_row("g2d", metric, 0.3, task="captioning", dataset="iu", protocol="p", run=run)
    for metric in ("bleu", "rouge")
    for run in ("run0", "run1")
]
UNKNOWN = "4 rows of captioning_iu (captioning), of whose task no primary metric is known"
PARTIAL = [
    result_row("mgca", "dice_all", 0.2, run="run0"),
    result_row("g2d", "dice_positive", 0.5, run="run0"),
    result_row("g2d", "dice_all", 0.4, run="run1"),
]
WITHOUT = "2 rows of segmentation_siim (segmentation), of runs without dice_positive"


def run(module, *arguments):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def results(tmp_path):
    return write(tmp_path / "results.jsonl", PARTIAL, CAPTIONS)


@pytest.mark.parametrize("layout", ["own", "summary"])
@pytest.mark.parametrize("suffix", ["md", "tex", "csv", "html"])
def test_tables_name_what_they_cannot_show(results, tmp_path, capsys, layout, suffix):
    out = tmp_path / f"t.{suffix}"
    assert run(table_command, results, "--layout", layout, "--output", out) == 0
    assert capsys.readouterr().err == f"Left out: {WITHOUT}; {UNKNOWN}.\n"
    if suffix != "csv":  # which has no footnotes
        assert "of whose task no primary metric is known" in out.read_text()


def test_a_metric_by_name_shows_them(results, tmp_path, capsys):
    out = tmp_path / "t.csv"
    run(table_command, results, "--metric", "bleu", "dice_all", "--output", out)
    assert capsys.readouterr().err == "Left out: 1 row of segmentation_siim (segmentation), of runs without dice_all.\n"
    assert {line["metric"] for line in from_csv(out.read_text())} == {"bleu", "dice_all"}


def test_nothing_but_unknown_tasks_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no primary metric is known of captioning; table --metric NAME .* bleu"):
        run(table_command, write(tmp_path / "r.jsonl", CAPTIONS))


def test_the_page_names_them(tmp_path):
    path = write_benchmark(tmp_path / "bench", pictures=False)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in CAPTIONS)
    text = write_report(path, resamples=0).path.read_text()
    assert f"Left out: {UNKNOWN}." in text


@pytest.mark.parametrize("form", ["rich", "markdown", "json"])
def test_a_comparison_names_them(results, tmp_path, capsys, form):
    other = write(tmp_path / "b.jsonl", PARTIAL[1:2])
    assert run(compare, results, other, "--format", form) == 0
    out = " ".join(capsys.readouterr().out.replace("\\", "").split())
    assert f"A: Left out: {WITHOUT}; {UNKNOWN}." in out
    assert "B: Left out" not in out


def _of_versions(*versions):
    return [
        result_row("g2d", "dice_positive", 0.5, run=f"run{i}", versions={"medvlp": medvlp, "torch": torch, "numpy": i})
        for i, (medvlp, torch) in enumerate(versions)
    ]


def test_mixed_versions_stand_in_a_footnote(tmp_path, capsys):
    rows = _of_versions(("1.0", "2.4"), ("1.0", "2.4"), ("1.1", "2.5"))
    note = "Mixed versions, with the number of rows: medvlp 1.0 (2), 1.1 (1); torch 2.4 (2), 2.5 (1)."
    path = write(tmp_path / "r.jsonl", rows)
    for layout in ("own", "summary", "g2d-1"):
        run(table_command, path, "--layout", layout)
        assert note in capsys.readouterr().out.replace("\\", ""), layout
    run(table_command, write(tmp_path / "r.jsonl", rows[:2]))
    assert "Mixed versions" not in capsys.readouterr().out


def test_rows_that_do_not_say_their_version_count_too(tmp_path, capsys):
    rows = [*_of_versions(("1.0", "2.4")), result_row("g2d", "dice_positive", 0.5, run="run7")]
    run(table_command, write(tmp_path / "r.jsonl", rows))
    assert "medvlp 1.0 (1), unknown (1); torch 2.4 (1), unknown (1)" in capsys.readouterr().out


def test_a_comparison_of_two_versions_says_so(tmp_path):
    a, b = (write(tmp_path / f"{v}.jsonl", _of_versions((v, "2.4"))) for v in ("1.0", "1.1"))
    assert compare.compare(a, b).notes == ("Mixed versions, with the number of rows: medvlp 1.0 (1), 1.1 (1).",)
    assert compare.compare(a, a).notes == ()
