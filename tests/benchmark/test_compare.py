"""Two result files side by side."""

import argparse
import json

import pytest
from made_results import predictions, rows_of, write

from medvlp.benchmark import compare as module
from medvlp.benchmark.compare import compare, to_json, to_markdown
from medvlp.errors import ConfigError


def results(folder, effects, **changes):
    """A results file with a run for each method's effect."""
    groups = [
        rows_of(folder, method, "run0", predictions(effect, 0, 150), **changes) for method, effect in effects.items()
    ]
    return write(folder / "results.jsonl", *groups)


@pytest.fixture
def files(tmp_path):
    return (
        results(tmp_path / "a", {"g2d": 1.5, "mgca": 1.0, "old": 1.0}),
        results(tmp_path / "b", {"g2d": 0.5, "mgca": 1.02, "new": 1.0}),
    )


def run(*arguments):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(argument) for argument in arguments]))


def test_cells_are_paired_and_tested(files):
    found = compare(*files)
    by = {row.cell["bm_method"]: row for row in found.both}
    assert list(by) == ["g2d", "mgca"]
    assert by["g2d"].cell["metric"] == "auroc"
    assert by["g2d"].value == pytest.approx(by["g2d"].b - by["g2d"].a)
    assert by["g2d"].value < 0
    assert by["g2d"].found.low < by["g2d"].value < by["g2d"].found.high < 0
    assert by["g2d"].p == pytest.approx(2 * by["g2d"].found.p)  # Holm, of two
    assert by["mgca"].p > 0.05
    assert found.worse == [by["g2d"]]
    assert found.only_a == ["old, linear_rsna, linear, test, 1, auroc: run0"]
    assert found.only_b == ["new, linear_rsna, linear, test, 1, auroc: run0"]


def test_metrics_can_be_named(files):
    assert {row.cell["metric"] for row in compare(*files, ["f1", "accuracy"], resamples=50).both} == {"f1", "accuracy"}
    every = {row.cell["metric"] for row in compare(*files, ["all"], resamples=50).both}
    assert {"auroc", "average_precision", "f1_kad"} <= every
    assert "classes_absent" not in every
    with pytest.raises(ConfigError, match="neither file has dice"):
        compare(*files, ["dice"])
    with pytest.raises(ConfigError, match="level"):
        compare(*files, level=1.0)


def test_where_predictions_cannot_be_paired_the_plain_difference_says_why(files, tmp_path):
    a, _ = files
    other = results(tmp_path / "split", {"g2d": 0.5}, split_sha256="another")
    (row,) = compare(a, other).both
    assert row.found is None
    assert row.value < 0
    assert row.note == "other splits: s in A, another in B"
    assert not compare(a, other).worse
    gone = results(tmp_path / "gone", {"g2d": 0.5})
    (tmp_path / "gone/predictions/g2d-run0.parquet").unlink()
    (row,) = compare(a, gone).both
    assert "no such file" in row.note
    rows = rows_of(tmp_path / "null", "g2d", "run0", predictions(1.0, 0, 150))
    (row,) = compare(a, write(tmp_path / "null/r.jsonl", [{**rows[0], "value": None}])).both
    assert row.note == "not defined in B"


def test_one_run_in_two_settings_is_refused(files, tmp_path):
    rows = rows_of(tmp_path / "two", "g2d", "run0", predictions(1.0, 0, 150))
    path = write(tmp_path / "two/r.jsonl", rows, [{**row, "config_sha256": "other"} for row in rows])
    with pytest.raises(ConfigError, match=r"auroc: run run0 is given twice \(lines 1 and \d+\), with other settings"):
        compare(files[0], path)


def test_single_runs_compare_as_well(tmp_path):
    a, b = (results(tmp_path / name, {"g2d": 1.0}, benchmark=False) for name in "ab")
    (row,) = compare(a, b).both
    assert (row.cell["bm_task"], row.runs, row.value, row.p) == ("classification/rsna", ("seed0",), 0, 1)


def test_exit_status_tells_of_regressions(files, capsys):
    a, b = files
    assert run(a, b) == 0
    assert run(a, b, "--fail-on-worse") == 1
    assert "1 of them worse in B" in " ".join(capsys.readouterr().out.split())
    assert run(a, a, "--fail-on-worse") == 0
    assert run(b, a, "--metric", "auroc", "--fail-on-worse") == 0  # better is not worse


def test_formats(files, capsys):
    found = compare(*files)
    lines = to_markdown(found).splitlines()
    assert lines[0].startswith("| method | task |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "**-" in lines[2]  # g2d, worse beyond chance
    assert "* old, linear_rsna, linear, test, 1, auroc: run0" in lines
    made = json.loads(to_json(found))
    assert made["both"][0]["cell"]["bm_method"] == "g2d"
    assert made["both"][0]["found"]["test"] == "delong"
    assert run(*files, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == made
