"""A benchmark from the command line: what comes out, what is not done twice, what failures and kills leave."""

import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from medvlp.benchmark.runner import COLLECTED
from medvlp.results import read_rows

UNSTEADY = ("seconds", "time")
"""Keys of a row that differ between two equal runs."""


def rows_of(work: Path) -> list[dict]:
    """The collected rows without what differs between two equal runs."""
    return [{k: v for k, v in row.items() if k not in UNSTEADY} for row in read_rows(work / COLLECTED)]


def _grid(work: Path) -> dict:
    return json.loads((work / "grid.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory, tiny_phantom, phantoms):
    """The folder of a run that nothing disturbed, and how often it changed the disk."""
    return {}


@pytest.fixture
def whole(undisturbed, command, tiny_grid, tmp_path):
    """The same, made when first asked for. Its grid lies in the folder of the test that asked first."""
    if not undisturbed:
        result = command("benchmark", "run", "-c", tiny_grid(), cwd=tmp_path).ok()
        undisturbed.update(work=tmp_path / "work", changes=result.changes, out=result.out)
    return undisturbed


def test_what_comes_out(whole):
    work = whole["work"]
    rows = rows_of(work)
    cells = {(r["benchmark"]["method"], r["benchmark"]["task"], r["fraction"], r["benchmark"]["run"]) for r in rows}
    assert len(cells) == 2 * 2 * 2 + 2 * 2 + 1
    for row in rows:
        assert (work / row["predictions"]).is_file()
        assert row["benchmark"]["grid"] == "tiny"
        assert (row["benchmark"]["pretrain_job"] is None) == (row["benchmark"]["method"] == "random")
    trained = [r for r in rows if r["task"] == "classification" and r["metric"] == "auroc"]
    assert {(r["seed"], r["notes"]["data"]["fraction"]) for r in trained} == {(0, 0.5), (0, 1), (1, 0.5), (1, 1)}
    described = _grid(work)
    assert {job["state"] for job in described["jobs"]} == {"done"}
    assert described["cannot"] == {"random": ["zero_shot_rsna"]}
    pretrained = next(job for job in described["jobs"] if job["kind"] == "pretrain")
    assert (work / pretrained["checkpoint"]).is_file()
    cost = pretrained["cost"]
    assert cost["samples"] == 36
    assert cost["parameters"] >= cost["trainable_parameters"] > 1000
    assert cost["peak_memory_mb"] > 50
    assert cost["energy_kwh"] == pytest.approx(cost["seconds"] * 50 / 3.6e6, abs=1e-6)
    assert cost["samples_per_second"] == pytest.approx(36 / cost["seconds"], rel=0.01)
    assert not list(work.glob("jobs/*/checkpoints/best.ckpt")), "heads are not kept unless asked for"
    panels = {(p["method"], p["kind"]): np.load(work / p["file"]) for p in described["panels"]}
    assert set(panels) == {("random", "segmentation"), ("g2d", "segmentation")}
    one, other = panels["random", "segmentation"], panels["g2d", "segmentation"]
    assert one["ids"].tolist() == other["ids"].tolist(), "the same images whatever the method"
    assert one["images"].shape == one["masks"].shape == one["truth_masks"].shape == (1, 64, 64)
    assert one["truth_masks"].any((1, 2)).all()
    assert "13 done" not in whole["out"]
    assert "14 done" in whole["out"]


def test_jobs_can_be_repeated_by_hand(whole, command, tmp_path):
    """The config that lies beside a result makes that result."""
    folder = next(whole["work"].glob("jobs/random.linear_rsna.0.5.*"))
    run = ["--config", folder / "job.yaml", "--trainer.default_root_dir", tmp_path / "again"]
    command("fit", *run).ok()
    command("test", *run, "--ckpt_path", tmp_path / "again" / "checkpoints" / "best.ckpt").ok()
    first, second = (
        {r["metric"]: (r["value"], r["low"], r["high"], r["config_sha256"]) for r in read_rows(f / "results.jsonl")}
        for f in (folder, tmp_path / "again")
    )
    assert first == second


def test_nothing_is_done_twice(whole, command, tmp_path):
    work = whole["work"]
    before = {path: path.stat().st_mtime_ns for path in work.glob("jobs/*/*") if path.is_file()}
    assert command("benchmark", "run", "-c", work.parent / "grid.yaml", cwd=work.parent).ok().out.startswith("14 done")
    assert {path: path.stat().st_mtime_ns for path in work.glob("jobs/*/*") if path.is_file()} == before


def test_dry_run_says_what_would_be_done_and_does_nothing(whole, command, tiny_grid, tmp_path):
    shown = command("benchmark", "run", "-c", tiny_grid(), "--dry-run", cwd=tmp_path).ok().out
    assert "14 jobs" in shown
    assert "1 pre-trainings and 13 tasks" in shown
    assert not (tmp_path / "work").exists()
    work = whole["work"]
    again = command("benchmark", "run", "-c", work.parent / "grid.yaml", "--dry-run", cwd=work.parent).ok().out
    assert "0 pre-trainings and 0 tasks" in again


def _without(work: Path, pattern: str) -> None:
    for path in work.glob(pattern):
        path.unlink()


def test_a_results_file_cut_in_mid_line_is_made_whole(whole, command):
    work = whole["work"]
    rows = rows_of(work)
    text = (work / COLLECTED).read_text()
    (work / COLLECTED).write_text(text[: len(text) // 2] + text[:200])
    command("benchmark", "run", "-c", work.parent / "grid.yaml", cwd=work.parent).ok()
    assert rows_of(work) == rows


def test_rows_that_were_changed_are_made_again(whole, command):
    work = whole["work"]
    rows = rows_of(work)
    changed = next(work.glob("jobs/g2d.zero_shot*/results.jsonl"))
    changed.write_text(changed.read_text().replace('"value": 0.', '"value": 0.9'))
    command("benchmark", "run", "-c", work.parent / "grid.yaml", cwd=work.parent).ok()
    assert rows_of(work) == rows


def test_a_checkpoint_that_changed_is_noticed(whole, command):
    work = whole["work"]
    checkpoint = next(work.glob("jobs/g2d.pretrain*/checkpoints/last.ckpt"))
    bytes_ = checkpoint.read_bytes()
    checkpoint.write_bytes(bytes_ + b"x")
    grid = work.parent / "grid.yaml"
    try:
        command("benchmark", "run", "-c", grid, cwd=work.parent).ok()  # nothing needs it any more
        _without(work, "jobs/g2d.zero_shot*/state.json")
        error = command("benchmark", "run", "-c", grid, cwd=work.parent).error()
        assert "last.ckpt" in error
        assert "has changed since results were written with it" in error
        assert "restore it, or delete" in error
    finally:
        checkpoint.write_bytes(bytes_)
    command("benchmark", "run", "-c", grid, cwd=work.parent).ok()


def test_a_failed_job_stops_no_other(command, tiny_grid, tmp_path):
    tiny_grid()
    broken = yaml.safe_load((tmp_path / "linear.yaml").read_text())
    broken["data"]["init_args"]["batch_size"] = 4000
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken))
    tasks = {"broken": {"config": "broken.yaml"}, "linear_rsna": {"config": "linear.yaml", "fractions": [1.0]}}
    methods = yaml.safe_load((tmp_path / "grid.yaml").read_text())["methods"]
    grid = tiny_grid(tasks=tasks, methods={"random": methods["random"]}, runs=[{"pretrain": 0}], fractions=[1.0])
    result = command("benchmark", "run", "-c", grid, cwd=tmp_path)
    assert result.code == 1
    assert "1 done, 1 failed" in result.out
    line = next(line for line in result.out.splitlines() if line.startswith("failed"))
    assert "lower batch_size or raise fraction" in line, "the job's own message"
    log = Path(line.rsplit("log: ", 1)[1].rstrip(")"))
    assert "Traceback" in (tmp_path / log).read_text()
    assert {job["task"]: job["state"] for job in _grid(tmp_path / "work")["jobs"]} == {
        "broken": "failed",
        "linear_rsna": "done",
    }
    left = command("benchmark", "run", "-c", grid, "--no-retry", cwd=tmp_path)
    assert left.code == 1
    assert "Traceback" not in left.err
    broken["data"]["init_args"]["batch_size"] = 4
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(with_other_epochs(broken)))
    assert "2 done" in command("benchmark", "run", "-c", grid, cwd=tmp_path).ok().out


def with_other_epochs(config: dict) -> dict:
    """Not the same job as linear_rsna, which would be an error."""
    config["trainer"]["max_epochs"] = 1
    return config


def test_tasks_of_a_failed_pre_training_are_blocked(command, tiny_grid, tmp_path):
    grid = tiny_grid(pretrain={"set": {"model.init_args.variant": "mine"}})
    result = command("benchmark", "run", "-c", grid, "--only", "g2d", "zero_shot_rsna", cwd=tmp_path)
    assert result.code == 1
    assert "1 failed, 1 blocked" in result.out
    assert "the pre-training of g2d failed" in result.out
    assert "variant" in next(line for line in result.out.splitlines() if line.startswith("failed"))


def test_only_runs_what_is_named(command, tiny_grid, tmp_path):
    grid = tiny_grid()
    command("benchmark", "run", "-c", grid, "--only", "random", "segmentation_siim", cwd=tmp_path).ok()
    rows = rows_of(tmp_path / "work")
    assert {(r["benchmark"]["method"], r["benchmark"]["task"]) for r in rows} == {("random", "segmentation_siim")}
    error = command("benchmark", "run", "-c", grid, "--only", "mgca", cwd=tmp_path).error()
    assert "no method or task of tiny" in error


@pytest.mark.variant
def test_a_disk_that_fills_is_a_failed_job(command, tiny_grid, tmp_path, monkeypatch):
    """Files may not grow beyond some size here, which a writer sees as it sees a full disk."""
    command("benchmark", "run", "-c", tiny_grid(), "--only", "random", "segmentation_siim", cwd=tmp_path).ok()
    rows = rows_of(tmp_path / "work")
    _without(tmp_path / "work", "jobs/*/state.json")
    for path in (tmp_path / "work").glob("jobs/*/checkpoints/*"):
        path.unlink()
    for path in (tmp_path / "work").glob("jobs/*/fitted"):
        path.unlink()
    full = command(
        *("benchmark", "run", "-c", tmp_path / "grid.yaml", "--only", "random", "segmentation_siim"),
        cwd=tmp_path,
        largest_file=30_000,
    )
    assert full.code == 1, full.err[-2000:]
    assert "2 failed" in full.out
    assert "the disk is full" in full.out
    command(
        "benchmark", "run", "-c", tmp_path / "grid.yaml", "--only", "random", "segmentation_siim", cwd=tmp_path
    ).ok()
    assert rows_of(tmp_path / "work") == rows


@pytest.mark.slow
@pytest.mark.parametrize("times", [3, pytest.param(10, marks=pytest.mark.variant)])
def test_killed_several_times_it_ends_where_the_undisturbed_run_ends(whole, command, tiny_grid, tmp_path, times):
    work = tmp_path / "killed"  # the undisturbed run may lie in the folder of this test
    grid = tiny_grid(work=str(work))
    chance, kills = random.Random(0), 0
    assert whole["changes"] > 100
    while kills < times:
        # at most a quarter of the work between two kills: there are four at least
        end_at = chance.randint(1, whole["changes"] // 4)
        result = command("benchmark", "run", "-c", grid, cwd=tmp_path, end_at=end_at)
        if result.code == 0:
            break
        assert result.code == -signal.SIGKILL, result.err[-2000:]
        kills += 1
    assert kills >= min(4, times), "the test is about kills"
    command("benchmark", "run", "-c", grid, cwd=tmp_path).ok()
    assert rows_of(work) == rows_of(whole["work"])
    for row in rows_of(work):
        assert (work / row["predictions"]).read_bytes() == (whole["work"] / row["predictions"]).read_bytes()
