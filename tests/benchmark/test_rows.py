"""Collected rows as a table."""

import gzip
import json

import pandas as pd
import pytest
from made_results import predictions, rows_of, write

from medvlp.benchmark.rows import collected, is_performance, primary_of, primary_rows, records
from medvlp.errors import DataError
from medvlp.results import numbered_rows


@pytest.fixture
def rows(tmp_path):
    return rows_of(tmp_path, "g2d", "p0d0", predictions(1.0, 0, 60, classes=2))


def test_the_benchmark_key_becomes_columns(tmp_path, rows):
    for row in rows:
        row["benchmark"]["seeds"] = {"pretrain": 3, "data": 1, "head": None}
    frame = collected(write(tmp_path / "r.jsonl", rows))
    first = records(frame)[0]
    assert (first["bm_method"], first["bm_title"], first["bm_task"]) == ("g2d", "G2D", "linear_rsna")
    assert (first["bm_run"], first["seed_pretrain"], first["seed_head"], first["line"]) == ("p0d0", 3, None, 1)
    assert first["notes"]["classes"] == ["Edema", "Mass"]
    assert "benchmark" not in first
    assert frame["value"].dtype == float


def test_rows_of_single_runs(tmp_path):
    path = write(tmp_path / "results.jsonl", rows_of(tmp_path, "mgca", "x", predictions(1.0, 0, 60), benchmark=False))
    first = collected(path).iloc[0]
    assert (first["bm_method"], first["bm_task"], first["bm_run"]) == ("mgca", "classification/rsna", "seed0")


def test_a_lacking_key_is_named_with_its_line(tmp_path, rows):
    broken = {key: value for key, value in rows[1].items() if key != "protocol"}
    with pytest.raises(DataError, match=r"r\.jsonl, line 2: the row has no protocol; run"):
        collected(write(tmp_path / "r.jsonl", [rows[0], broken]))
    with pytest.raises(DataError, match=r"line 1: benchmark has no run, job; run"):
        collected(write(tmp_path / "r.jsonl", [{**rows[0], "benchmark": {"method": "a", "task": "b"}}]))
    with pytest.raises(DataError, match=r"line 1: value is 'high', not a number"):
        collected(write(tmp_path / "r.jsonl", [{**rows[0], "value": "high"}]))
    with pytest.raises(DataError, match="no result rows"):
        collected(write(tmp_path / "r.jsonl", []))
    with pytest.raises(DataError, match="no such results file"):
        collected(tmp_path / "none.jsonl")


def test_cut_lines_are_told_and_left_out(tmp_path, rows):
    path = tmp_path / "r.jsonl"
    whole = [json.dumps(row) for row in rows[:3]]
    path.write_text(whole[0] + "\n" + whole[1][:70] + "\n\n" + whole[2] + "\n")
    with pytest.warns(UserWarning, match=r"\[2\]"):
        frame = collected(path)
    assert frame["line"].tolist() == [1, 4]
    assert numbered_rows(path)[1] == [2]


def test_of_a_job_that_ran_twice_the_last_counts(tmp_path, rows):
    later = [{**row, "seconds": 2.0} for row in rows]
    other = [{**row, "config_sha256": "other"} for row in rows]
    path = write(tmp_path / "r.jsonl", rows, later, other)
    frame = collected(path)
    assert len(frame) == 2 * len(rows)
    assert frame["line"].min() == len(rows) + 1
    assert len(collected(path, latest=False)) == 3 * len(rows)


def test_primary_metrics(tmp_path, rows):
    assert primary_of("classification", {"auroc", "accuracy"}) == "auroc"
    assert primary_of("classification", {"auroc", "accuracy"}, multiclass=True) == "accuracy"
    assert primary_of("grounding", {"miou", "cnr"}) == "miou"
    assert primary_of("retrieval", {"precision@5/i2i", "precision@5/p2i"}) == "precision@5/i2i"
    assert primary_of("captioning", {"bleu"}) is None
    frame = collected(write(tmp_path / "r.jsonl", rows))
    assert primary_rows(frame)[0]["metric"].tolist() == ["auroc"]
    assert primary_rows(frame)[1] == ""
    three = [{**row, "notes": {"model": {"labels": "multiclass"}}} for row in rows]
    assert primary_rows(collected(write(tmp_path / "r.jsonl", three)))[0]["metric"].tolist() == ["accuracy"]
    assert is_performance("auroc/Edema")
    assert not any(map(is_performance, ["classes_absent", "floor/dice_all", "chance/recall@1/i2t", "prior_centre/iou"]))


def test_compressed_rows_are_the_same_rows(tmp_path, rows):
    plain = write(tmp_path / "r.jsonl", rows)
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    pd.testing.assert_frame_equal(collected(packed), collected(plain))
    assert numbered_rows(packed) == numbered_rows(plain)


DAMAGED = {
    "not UTF-8": b'{"metric": "caf\xe9"}',
    "nested too deeply": b"[" * 100_000,
    "an integer of 5,000 digits": b'{"metric": "auroc", "value": ' + b"9" * 5000 + b"}",
    "half a pair of surrogates": b'{"metric": "\\ud800"}',
    "a list": b"[1]",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_damaged_lines_are_told_and_left_out(tmp_path, rows, line):
    path = write(tmp_path / "r.jsonl", rows[:1])
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.warns(UserWarning, match=r"line\(s\) \[1\] are no result rows"):
        assert collected(path)["line"].tolist() == [2]


def test_a_line_ends_at_its_newline_alone(tmp_path, rows):
    rows[0]["method"] = "a\u2028b\x0bc\x85d"
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:2]), encoding="utf-8")
    assert collected(path)["line"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("value", v) for v in (float("inf"), 10**400, True, [1])),
        *(("fraction", v) for v in (0, -1, 10)),
        *(("seed", 1.5), ("task", 5), ("dataset", None), ("split", {}), ("notes", [1]), ("versions", "1")),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(tmp_path, rows, key, value):
    with pytest.raises(DataError, match=rf"r\.jsonl, line 1: {key} is "):
        collected(write(tmp_path / "r.jsonl", [{**rows[0], key: value}]))


@pytest.mark.parametrize("value", [[], {}, 5])
@pytest.mark.parametrize("key", ["grid", "method", "title", "task", "run", "job"])
def test_names_of_the_benchmark_are_texts(tmp_path, rows, key, value):
    with pytest.raises(DataError, match="line 1: benchmark has a name that is not a string"):
        collected(write(tmp_path / "r.jsonl", [{**rows[0], "benchmark": {**rows[0]["benchmark"], key: value}}]))


def test_a_compressed_file_that_is_damaged(tmp_path, rows):
    packed = tmp_path / "r.jsonl.gz"
    whole = gzip.compress(write(tmp_path / "r.jsonl", rows).read_bytes())
    for content in (whole[:-20], whole[:30] + b"\0" * 40 + whole[70:]):
        packed.write_bytes(content)
        with pytest.raises(DataError, match=r"r\.jsonl\.gz: damaged"):
            collected(packed)
