"""Files of result rows: what is appended arrives whole, whoever else writes, and however the writing ends."""

import errno
import json
import multiprocessing
import resource

import pytest
from made_results import write
from printed_tables import result_row

from medvlp.benchmark.rows import collected
from medvlp.errors import DataError
from medvlp.results import ResultRow, append_lines, append_rows, numbered_rows

FACTS = {
    **{"method": "m", "checkpoint": "c", "task": "classification", "protocol": "linear", "dataset": "rsna"},
    **{"part": "test", "split": "clean", "split_sha256": "s", "fraction": 1.0, "metric": "auroc", "value": 0.5},
}


def row(seed: int, **changes) -> ResultRow:
    return ResultRow(**{**FACTS, "seed": seed, **changes})


def seeds(path) -> list[int]:
    return [found["seed"] for found in numbered_rows(path)[0].values()]


def test_a_row_cut_at_any_byte_costs_no_other_row(tmp_path):
    path = append_rows(tmp_path / "whole.jsonl", [row(0)])
    first = path.stat().st_size
    content = append_rows(path, [row(1)]).read_bytes()
    for end in range(first, len(content) + 1):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(content[:end])
        append_rows(cut, [row(2), row(3)])
        whole = end >= len(content) - 1  # with its newline or without
        assert seeds(cut) == ([0, 1, 2, 3] if whole else [0, 2, 3]), end
        assert numbered_rows(cut)[1] == ([] if whole or end == first else [2]), end


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = append_rows(tmp_path / "r.jsonl", [row(0)])
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, limits[1]))  # takes a part of what it is given
    try:
        with pytest.raises(OSError, match="too large") as caught:
            append_rows(path, [row(seed) for seed in range(1, 50)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before


def _append(path, seed):
    for _ in range(20):
        append_rows(path, [row(seed, notes={"text": "x" * 3000}) for _ in range(10)])


def test_processes_that_write_the_same_file_at_once(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = seeds(path)
    assert sorted(found) == sorted([0, 1, 2] * 200)
    assert all(len(set(found[i : i + 10])) == 1 for i in range(0, 600, 10)), "rows of one call stay together"
    assert not numbered_rows(path)[1]


def test_nothing_to_append_leaves_an_empty_file(tmp_path):
    assert append_lines(tmp_path / "r.jsonl", []).read_bytes() == b""


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_another_encoding_is_refused_in_one_line(tmp_path, encoding):
    path = write(tmp_path / "r.jsonl", [result_row("g2d", "dice_positive", 0.5)] * 30)
    path.write_text(path.read_text(), encoding=encoding)
    with (
        pytest.warns(UserWarning, match=r"\[1, 2, .*\] and \d+ more are no result rows") as told,
        pytest.raises(DataError, match=r"r\.jsonl: no result rows"),
    ):
        collected(path)
    assert len(str(told[0].message)) < 300


def test_a_row_in_another_encoding_is_named_and_costs_no_other(tmp_path):
    rows = [json.dumps(result_row("g2d", "dice_positive", 0.5, run=f"run{i}")).encode() for i in range(2)]
    path = tmp_path / "r.jsonl"
    path.write_bytes(rows[0] + b"\n" + rows[1].replace(b"siim", "siìm".encode("latin-1")) + b"\n")
    with pytest.warns(UserWarning, match=r"line\(s\) \[2\] are no result rows"):
        assert collected(path)["line"].tolist() == [1]
