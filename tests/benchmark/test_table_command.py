"""``medvlp benchmark table`` from its arguments to its files."""

import argparse

import pytest
from made_results import write
from printed_tables import from_csv, result_row

from medvlp.benchmark import table_command
from medvlp.errors import ConfigError, DataError


def call(*arguments):
    parser = argparse.ArgumentParser()
    table_command.add_arguments(parser)
    return table_command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def results(tmp_path):
    rows = [
        result_row("g2d", "dice_positive", 0.5),
        result_row("g2d", "dice_mgca", 0.7),
        result_row("g2d", "dice_positive", 0.9, protocol="mgca", bm_task="other"),
    ]
    return write(tmp_path / "results.jsonl", rows)


def test_by_default_our_own_tables_are_printed(results, capsys):
    assert call(results) == 0
    out = capsys.readouterr().out
    assert "### Segmentation" in out
    assert "50.0" in out


@pytest.mark.parametrize(
    ("suffix", "start"), [(".md", "### G2D"), (".tex", "%"), (".csv", "table,"), (".html", "<!DOC")]
)
def test_the_suffix_says_the_format(tmp_path, suffix, start):
    out = tmp_path / f"new/table{suffix}"
    call("--reported-only", "--layout", "g2d-1", "--output", out)
    assert out.read_text().startswith(start)


def test_a_folder_gets_a_file_per_table(tmp_path):
    call("--reported-only", "--format", "latex", "--output", tmp_path / "tables")
    assert len(list((tmp_path / "tables").glob("*.tex"))) == 25


def test_protocol_and_metric_are_chosen(results, tmp_path):
    with pytest.raises(ConfigError, match="--protocol"):
        call(results, "--layout", "g2d-1")
    out = tmp_path / "t.csv"
    for options, value in ((("mgca",), "90.0"), (("g2d", "--metric", "dice_mgca"), "70.0")):
        call(results, "--layout", "g2d-1", "--output", out, "--protocol", *options)
        assert [line["value"] for line in from_csv(out.read_text()) if line["jobs"]] == [value]


def test_all_leaves_out_tables_without_results_and_says_so(results, capsys):
    call(results, "--layout", "all", "--protocol", "g2d")
    printed = capsys.readouterr()
    assert "### G2D, Table 1" in printed.out
    assert "MaCo, Table 5" not in printed.out
    assert "maco-5" in printed.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--layout", "g2d-6", "--reported-only"], "unknown layout 'g2d-6'"),
        (["--layout", "own", "--reported-only"], "own has no reported numbers"),
        ([], "which results"),
        (["R", "--reported-only"], "reads no results"),
        (["R", "--metric", "dice"], "--metric dice: no row has it"),
        (["R", "--protocol", "kad"], "--protocol kad: no row has it; expected one of: g2d, mgca"),
        (["R", "--fraction", "0.5"], "leave no row"),
        (["R", "--resamples", "-1"], "--resamples -1"),
        (["R", "--output", "x.pdf"], "--format"),
    ],
)
def test_bad_arguments_are_named(results, arguments, what):
    with pytest.raises(ConfigError, match=what):
        call(*[results if argument == "R" else argument for argument in arguments])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such results file"):
        call(tmp_path / "none.jsonl")


def test_the_summary_has_every_task_in_one_table(tmp_path):
    rows = [
        result_row("g2d", "dice_positive", 0.5),
        result_row("convirt", "dice_positive", 0.4),
        result_row("g2d", "map_coco", 0.3, task="detection", bm_task="det", dataset="rsna"),
    ]
    out = tmp_path / "t.csv"
    call(write(tmp_path / "r.jsonl", rows), "--layout", "summary", "--output", out, "--resamples", "0")
    lines = from_csv(out.read_text())
    assert {line["table"] for line in lines} == {"summary"}
    assert sorted(line["value"] for line in lines) == ["-", "30.0", "40.0", "50.0"]


def test_layouts_of_our_own_have_no_reported_numbers():
    for name in ("own", "summary"):
        with pytest.raises(ConfigError, match=f"--layout {name} has no reported numbers"):
            call("--reported-only", "--layout", name)
