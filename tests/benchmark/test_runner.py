"""What the runner does with jobs, whatever they are: here they write a note and nothing else."""

import argparse
import json
from pathlib import Path

import pytest
from filelock import FileLock

from medvlp.benchmark import run_command
from medvlp.benchmark import runner as runner_module
from medvlp.benchmark.executors import InProcess, JobTimeoutError
from medvlp.benchmark.grid import read_grid
from medvlp.benchmark.jobs import Job, expand
from medvlp.benchmark.progress import Progress, duration
from medvlp.benchmark.runner import Runner, estimates, rows_of
from medvlp.benchmark.work import job_folder, leave_note
from medvlp.errors import ConfigError
from medvlp.results import ResultRow, append_rows, numbered_rows
from medvlp.store import file_sha256

ROW = {
    **{"method": "m", "checkpoint": "c", "task": "classification", "protocol": "linear", "dataset": "rsna"},
    **{
        "part": "test",
        "split": "clean",
        "split_sha256": "s",
        "fraction": 1.0,
        "seed": 0,
        "metric": "auroc",
        "value": 0.5,
    },
}


def pretend(job: Job, work: Path, checkpoint: Path | None) -> dict:
    """As a job that is done after no time."""
    folder = job_folder(work, job)
    folder.mkdir(parents=True, exist_ok=True)
    state = {"state": "done", "seconds": 30.0 if job.kind == "pretrain" else 3.0}
    if job.kind == "pretrain":
        path = folder / "checkpoints" / "last.ckpt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
        state |= {"checkpoint": "checkpoints/last.ckpt", "checkpoint_sha256": file_sha256(path)}
    else:
        (folder / "results.jsonl").unlink(missing_ok=True)
        append_rows(folder / "results.jsonl", [ResultRow(**ROW)])
        state |= {"rows": 1, "results_sha256": file_sha256(folder / "results.jsonl")}
    (folder / "state.json").write_text(json.dumps(state))
    return state


@pytest.fixture
def small(tiny_grid):
    """A runner over the tiny grid."""
    grid = read_grid(tiny_grid())
    return Runner(grid, expand(grid))


def _run(runner: Runner, function=pretend) -> tuple[dict[str, str], list[Job]]:
    seen = []

    def counted(job, *rest):
        seen.append(job)
        return function(job, *rest)

    with Progress(runner.requested) as progress:
        return runner.run(InProcess(counted), progress), seen


def test_what_is_needed_comes_first_and_nothing_twice(small):
    states, seen = _run(small)
    assert set(states.values()) == {"done"}
    assert len(seen) == len({job.hash for job in seen}) == len(small.jobs)
    places = {job.hash: place for place, job in enumerate(seen)}
    assert all(places[job.needs] < places[job.hash] for job in seen if job.needs)
    assert _run(small)[1] == []


def test_two_runs_at_once(small, monkeypatch):
    monkeypatch.setattr(runner_module, "_PATIENCE", 0.2)
    small.work.mkdir(parents=True)
    with FileLock(small.work / ".lock"), pytest.raises(ConfigError, match="another run is at work in this folder"):
        _run(small)
    assert set(_run(small)[0].values()) == {"done"}


def test_a_checkpoint_is_made_again_only_if_a_task_needs_it(small):
    _run(small)
    pretrained = next(job for job in small.jobs if job.kind == "pretrain")
    (job_folder(small.work, pretrained) / "state.json").unlink()
    assert _run(small)[1] == [], "all that it is for is done"
    needy = next(job for job in small.jobs if job.needs)
    (job_folder(small.work, needy) / "state.json").unlink()
    assert _run(small)[1] == [pretrained, needy]


def test_estimates_become_measurements(small):
    before = estimates(small.work, small.jobs)
    assert {seconds for seconds, _ in before.values()} == {600.0, 60.0}, "the grid's own guesses"
    _run(small)
    after = estimates(small.work, small.jobs)
    assert {seconds for seconds, _ in after.values()} == {30.0, 3.0}


def test_a_disk_that_is_too_small_is_said_beforehand(small, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(ConfigError, match=r"would leave about 0\.2 GB and 0\.0 GB are free; free space, or set work"):
        _run(small)


def test_rests_of_killed_jobs_are_cleared_away(small):
    rest = small.work / "features" / "abc.part123"
    rest.mkdir(parents=True)
    (small.work / "features" / "whole").mkdir()
    _run(small)
    assert [path.name for path in (small.work / "features").iterdir()] == ["whole"]


def test_stored_features_are_dropped_when_everything_is_done(small):
    kept = small.work / "features" / "whole"
    kept.mkdir(parents=True)
    small.drop_features = True

    def fail(job, *rest):
        raise RuntimeError("no luck")

    _run(small, fail)
    assert kept.is_dir(), "jobs are left that want them"
    _run(small)
    assert not kept.exists()


def test_durations():
    assert [duration(s) for s in (5, 90, 7200, 9000)] == ["5 s", "2 min", "2 h 00 min", "2 h 30 min"]


DAMAGED = {
    "a key is missing": b'{"state": "done"}',
    "not UTF-8": b'{"state": "caf\xe9"}',
    "nested too deeply": b"[" * 100_000,
    "cut": b'{"state": "do',
    "a list": b"[]",
    "numbers as texts": b'{"state": "done", "seconds": "1", "results_sha256": "x", "checkpoint_sha256": "x"}',
    "a place that is none": b'{"state": "done", "seconds": 1, "checkpoint": 5, "checkpoint_sha256": 5}',
    "a failure without a text": b'{"state": "failed", "seconds": 1, "error": [1]}',
    "a cost of words": (
        b'{"state": "done", "seconds": 1, "results_sha256": "x", "checkpoint_sha256": "x", "cost": {"watts": "5"}}'
    ),
    "an unknown state": b'{"state": "lost", "seconds": 1}',
}


@pytest.mark.parametrize("kind", ["pretrain", "task"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_job_with_a_damaged_note_is_told_and_runs_again(small, content, kind):
    _run(small)
    whole = (small.work / "results.jsonl").read_text()
    job = next(job for job in small.jobs if job.kind == kind)
    (job_folder(small.work, job) / "state.json").write_bytes(content)
    if kind == "pretrain":  # which is run again only where a task needs it
        job_folder(small.work, next(j for j in small.jobs if j.needs)).joinpath("state.json").unlink()
    with pytest.warns(UserWarning, match=r"state\.json: .*; the job is run again"):
        states, seen = _run(small)
    assert set(states.values()) == {"done"}
    assert seen[0] == job
    assert len(seen) == (2 if kind == "pretrain" else 1)
    assert [line.split('"time"')[0] for line in (small.work / "results.jsonl").read_text().splitlines()] == [
        line.split('"time"')[0] for line in whole.splitlines()
    ]


def test_a_job_over_its_time_is_recorded_as_failed_with_the_reason_and_others_go_on(small):
    slow = next(job for job in small.jobs if job.kind == "task" and not job.needs)

    def hang(job, *rest):
        if job == slow:
            raise JobTimeoutError("ended after timeout_min, 5 minutes")
        return pretend(job, *rest)

    states, _ = _run(small, hang)
    assert states.pop(slow.hash) == "failed"
    assert set(states.values()) == {"done"}
    note = json.loads((job_folder(small.work, slow) / "state.json").read_text())
    assert (note["state"], note["error"]) == ("failed", "ended after timeout_min, 5 minutes")
    (described,) = [j for j in json.loads((small.work / "grid.json").read_text())["jobs"] if j["hash"] == slow.hash]
    assert described["error"] == note["error"]
    assert _run(small)[1] == [slow], "it is tried again"


def test_a_failed_pre_training_is_tried_again_with_its_tasks(small):
    def fail(job, *rest):
        return pretend(job, *rest) if job.kind == "task" else leave_note(job, small.work, "no luck")

    first, _ = _run(small, fail)
    assert sorted(set(first.values())) == ["blocked", "done", "failed"]
    assert set(_run(small)[0].values()) == {"done"}


def test_a_collection_that_is_cut_short_leaves_the_results_as_they_were(small, monkeypatch):
    _run(small)
    results = small.work / "results.jsonl"
    before = results.read_bytes()
    last = [job for job in small.jobs if job.kind == "task"][-1]

    def breaks(work, job, grid):
        if job is last:
            raise KeyboardInterrupt
        return rows_of(work, job, grid)

    monkeypatch.setattr(runner_module, "rows_of", breaks)
    with pytest.raises(KeyboardInterrupt):
        runner_module.collect(small.work, small.jobs, small.grid)
    assert results.read_bytes() == before


def test_rows_are_added_below_a_line_that_was_cut_short(small):
    job = next(job for job in small.jobs if job.kind == "task")
    pretend(job, small.work, None)
    results = small.work / "results.jsonl"
    results.write_text('{"metric": "au')
    runner_module.append(small.work, job, small.grid)
    rows, cut = numbered_rows(results)
    assert (list(rows), cut) == ([2], [1])


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(130)], ids=["between jobs", "in a job"])
def test_an_interrupted_run_says_what_was_done(tiny_grid, monkeypatch, capsys, end):
    path, ended = tiny_grid(), []

    def some(job, work, checkpoint):
        if len(ended) == 2:
            raise end
        ended.append(job)
        return pretend(job, work, checkpoint)

    monkeypatch.setattr(run_command, "_executor", lambda *_: InProcess(some))
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    with pytest.raises(type(end)):
        run_command.run(parser.parse_args(["--config", str(path)]))
    left = len(expand(read_grid(path))) - 2
    printed = capsys.readouterr().err
    assert printed == f"interrupted: 2 done, {left} waiting; the same command resumes\n"


def test_a_blocked_job_has_no_duration(small, capfd):
    with Progress(small.requested) as progress:
        progress.set(small.requested[-1], "blocked", "the pre-training of g2d failed")
    assert capfd.readouterr().out == (
        f"blocked  {small.requested[-1].name}  0/{len(small.requested)}  the pre-training of g2d failed\n"
    )
