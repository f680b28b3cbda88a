"""Verification: each thing that can be wrong is told apart."""

import argparse
import json
import warnings

import pytest
from made_results import predictions, rows_of, write

from medvlp.benchmark import verify as module
from medvlp.benchmark.verify import verify
from medvlp.errors import DataError
from medvlp.store import file_sha256


@pytest.fixture
def made(tmp_path):
    """Rows of two runs, and the file they are written to."""
    rows = [
        *rows_of(tmp_path, "g2d", "a", predictions(1.0, 0, 60)),
        *rows_of(tmp_path, "g2d", "b", predictions(1, 1, 60)),
    ]
    return rows, write(tmp_path / "results.jsonl", rows)


def kinds(found):
    return [(fault.kind, fault.place.partition(":")[2], fault.rows) for fault in found.faults]


def run(path, *options):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(path), *options]))


def test_what_was_written_holds(made, capsys):
    rows, path = made
    found = verify(path)
    assert not found.faults
    assert found.checked["rows"] == found.checked["values"] == found.checked["intervals"] == len(rows)
    assert found.checked["prediction files"] == 2
    assert run(path) == 0
    assert "all of it holds" in capsys.readouterr().out


def test_changed_numbers(made, capsys):
    rows, path = made
    rows[0]["value"] += 0.001
    rows[1]["high"] += 0.001
    rows[2]["samples"] = 61
    rows[3]["metric"] = "auprc"
    write(path, rows)
    assert kinds(verify(path, resamples=False)) == [
        ("changed value", "1", 1),
        ("changed value", "3", 1),
        ("changed value", "4", 1),
    ]
    assert [kind for kind, *_ in kinds(verify(path))].count("changed interval") == 2  # and of the unknown metric
    assert run(path) == 1
    printed = capsys.readouterr().out
    assert "changed value: 3" in printed
    assert "changed interval: 2" in printed


def test_an_undefined_value_stays_undefined(made):
    rows, path = made
    write(path, [{**rows[0], "value": None}])
    assert kinds(verify(path, resamples=False)) == [("changed value", "1", 1)]


def test_predictions_that_are_gone_changed_or_damaged(made, tmp_path):
    rows, path = made
    half = len(rows) // 2
    files = [tmp_path / rows[0]["predictions"], tmp_path / rows[half]["predictions"]]
    files[1].write_bytes(files[0].read_bytes())
    assert kinds(verify(path)) == [("changed predictions", f"{half + 1}-{2 * half}", half)]
    files[0].unlink()
    assert kinds(verify(path))[0] == ("no predictions", f"1-{half}", half)
    files[0].write_bytes(b"PAR1 cut")
    for row in rows[:half]:
        row["predictions_sha256"] = file_sha256(files[0])
    assert kinds(verify(write(path, rows[:half]))) == [("unreadable predictions", f"1-{half}", half)]
    write(path, [{**rows[0], "predictions": None}])
    assert kinds(verify(path)) == [("no predictions", "1", 1)]


def test_rows_from_before_facts_were_recorded(made, capsys):
    rows, path = made
    for row in rows[:2]:
        row["notes"] = {key: value for key, value in row["notes"].items() if key != "labels"}
    write(path, rows)
    assert kinds(verify(path)) == [("no facts", "1-2", 2)]
    assert run(path) == 1
    assert "'labels'" in " ".join(capsys.readouterr().out.split())


def test_lines_cut_short(made):
    rows, path = made
    path.write_text(path.read_text() + json.dumps(rows[0])[:50])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kinds(verify(path)) == [("cut line", str(len(rows) + 1), 1)]


def test_checkpoints_of_the_grid(made, tmp_path):
    _, path = made
    (tmp_path / "jobs").mkdir()
    names = ["jobs/one.ckpt", "jobs/two.ckpt", "jobs/three.ckpt"]
    for name in names[:2]:
        (tmp_path / name).write_text(name)
    job = {"hash": "h", "kind": "pretrain", "state": "done", "method": "g2d", "run": "a"}
    jobs = [
        {**job, "checkpoint": name, "checkpoint_sha256": file_sha256(tmp_path / names[0])}
        for name in (names[0], *names)
    ]
    jobs.append({**job, "checkpoint": None, "checkpoint_sha256": None})
    (tmp_path / "grid.json").write_text(json.dumps({"name": "g", "jobs": jobs}))
    found = verify(path)
    assert [fault.kind for fault in found.faults] == ["changed checkpoint", "no checkpoint"]
    assert [fault.place for fault in found.faults] == [str(tmp_path / name) for name in names[1:]]
    assert found.checked["checkpoints"] == 2
    assert not verify(path, checkpoints=False).faults
    (tmp_path / "grid.json").write_text("{}")
    with pytest.raises(DataError, match=r"grid\.json: has no jobs"):
        verify(path)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no such results file"):
        verify(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        b'{"jobs": null}',
        b'{"jobs": [5]}',
        b"[]",
        b"\xe9",
        b"[" * 100_000,
        b'{"jobs": [{"checkpoint": 5, "checkpoint_sha256": 5}]}',
    ],
)
def test_a_damaged_description_of_the_grid_is_named(tmp_path, content):
    path = write(tmp_path / "r.jsonl", rows_of(tmp_path, "g2d", "p0d0", predictions(1.0, 0, 60)))
    (tmp_path / "grid.json").write_bytes(content)
    with pytest.raises(DataError, match=r"grid\.json: .*run medvlp benchmark run again"):
        verify(path, resamples=False)
