"""Where jobs run, and what a process that dies, is killed or is preempted leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_line import environment
from pool_work import around, dies, fails_in_second_process, hangs, job, second_time_lucky

from medvlp.benchmark import executors, work
from medvlp.benchmark.executors import InProcess, JobTimeoutError, LocalPool, Submitit, _Requeued
from medvlp.errors import ConfigError
from medvlp.results import read_rows

SUPPORT = Path(__file__).parents[1] / "support"


HANG = 900
"""Seconds after which a test has hung: no test depends on it."""


def _until(condition):
    """Waits for something that must come true."""
    end = time.monotonic() + HANG
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def processes_find_their_work(monkeypatch):
    paths = [str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


# ---------------------------------------------------------------- this process


def test_in_process_keeps_an_error_with_its_job():
    def function(given):
        if given == "bad":
            raise ValueError("so it is")
        return {"state": "done"}

    good, bad, other = InProcess(function).submit([("good",), ("bad",), ("other",)])
    assert good.result() == other.result() == {"state": "done"}
    with pytest.raises(ValueError, match="so it is"):
        bad.result()


def test_in_process_ends_when_it_is_told_to():
    """After SIGTERM, Lightning ends a training by SystemExit; the next job must not begin."""
    begun = []

    def function(given):
        begun.append(given)
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        InProcess(function).submit([("one",), ("two",)])
    assert begun == ["one"]


# ---------------------------------------------------------------- pool


def test_pool_gives_each_process_its_device_and_share_of_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    pool = LocalPool(around, 2, ["3", "5"])
    try:
        assert pool.capacity == 2
        notes = [handle.result() for handle in pool.submit([(job("a"),), (job("b"),)])]
        again = pool.submit([(job("c"),)])[0].result()
    finally:
        pool.close()
    assert [note["device"] for note in notes] == ["3", "5"]
    assert len({note["pid"] for note in notes} | {os.getpid()}) == 3
    assert again["pid"] in {note["pid"] for note in notes}, "a process serves many jobs: it imports torch once"
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {note["threads"] for note in notes} == {share}


@pytest.mark.parametrize(
    ("how", "reason"),
    [("killed", "killed by SIGKILL"), ("exits", "exit status 3"), ("terminated", r"told to end \(status 143\)")],
)
def test_a_process_that_dies_takes_its_own_job_alone(how, reason):
    pool = LocalPool(dies, 2)
    try:
        dead, well = pool.submit([(job("dead"), how), (job("well"),)])
        assert well.result()["name"] == "well"
        with pytest.raises(RuntimeError, match=reason):
            dead.result()
        again = pool.submit([(job("third"),), (job("fourth"),)])
        assert [handle.result()["name"] for handle in again] == ["third", "fourth"]
    finally:
        pool.close()


def test_a_pool_needs_a_process():
    with pytest.raises(ConfigError, match="at least one process"):
        LocalPool(dies, 0)


def _pid(file: Path) -> int:
    _until(file.exists)
    return int(file.read_text())


def test_closing_ends_processes_that_hear_no_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_GRACE", 0.1)
    pool = LocalPool(hangs, 2)
    pool.submit([(job("slow"), tmp_path), (job("other"), tmp_path)])
    pids = [_pid(tmp_path / "slow"), _pid(tmp_path / "other")]
    pool.close()
    _until(lambda: not any(map(_alive, pids)))


def test_a_job_over_its_time_is_ended_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_GRACE", 0.1)
    pool = LocalPool(hangs, 2)
    try:
        limited = replace(job("limited"), timeout_min=0.01)
        over, other = pool.submit([(limited, tmp_path), (job("other"), tmp_path)])
        pids = [_pid(tmp_path / "limited"), _pid(tmp_path / "other")]
        _until(over.done)
        with pytest.raises(JobTimeoutError, match=r"ended after timeout_min, 0\.01 minutes"):
            over.result()
        _until(lambda: not _alive(pids[0]))
        assert _alive(pids[1])
        assert not other.done()
        (again,) = pool.submit([(job("again"), tmp_path)])
        assert _pid(tmp_path / "again") not in pids
        assert not again.done()
    finally:
        pool.close()


def test_this_process_ends_after_a_signal_even_if_its_job_hangs(tmp_path):
    script = f"""
import os, signal, time
from pathlib import Path
from medvlp.benchmark import executors
from pool_work import hangs, job
executors._GRACE = 0.1
executors.end_after_signal()
signal.signal(signal.SIGTERM, lambda *_: None)  # as Lightning, which waits for the batch to end
if os.fork() == 0:  # a worker of a loader is ended by the same signal, and nobody else
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
os.wait()
Path({str(tmp_path / "pid.part")!r}).write_text(str(os.getpid()))
Path({str(tmp_path / "pid.part")!r}).rename({str(tmp_path / "pid")!r})
while True:
    time.sleep(1)
"""
    process = subprocess.Popen([sys.executable, "-c", script], env=environment())
    _until((tmp_path / "pid").exists)
    assert process.poll() is None
    process.terminate()
    assert process.wait(HANG) == 128 + signal.SIGTERM


def test_nobody_writes_on_when_the_runner_is_killed(tmp_path):
    script = f"""
from pathlib import Path
from medvlp.benchmark.executors import LocalPool
from pool_work import job, hangs
if __name__ == "__main__":
    handles = LocalPool(hangs, 2).submit([(job(name), Path({str(tmp_path)!r})) for name in "ab"])
    handles[0].result()
"""
    (tmp_path / "runner.py").write_text(script)
    runner = subprocess.Popen([sys.executable, tmp_path / "runner.py"], env=environment())
    pids = [_pid(tmp_path / name) for name in "ab"]
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    _until(lambda: not any(map(_alive, pids)))


# ---------------------------------------------------------------- submitit's local processes


@pytest.fixture
def local(tmp_path):
    """Makes executors over submitit's own processes, and ends what they left."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    made = []

    def make(function, **parameters) -> Submitit:
        made.append(Submitit(function, tmp_path / "submitit", parameters, "local"))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def test_an_interrupted_job_is_queued_again_and_goes_on(local, tmp_path):
    (handle,) = local(second_time_lucky).submit([(job("a"), tmp_path)])
    pid = _pid(tmp_path / "a.started")
    # what SLURM sends to the processes of a job shortly before it ends them
    os.kill(pid, signal.SIGUSR2)
    _until(handle.done)
    note = handle.result()
    assert note["state"] == "done"
    assert note["first"] == pid != note["pid"]


@pytest.mark.variant
def test_one_process_of_several_that_fails_fails_the_job(local):
    (handle,) = local(fails_in_second_process, tasks_per_node=2).submit([(job("a"),)])
    _until(handle.done)
    with pytest.raises(Exception, match="process 1 of 2: no space left"):
        handle.result()


def test_the_first_process_of_several_speaks_for_the_job(local):
    (handle,) = local(dies, tasks_per_node=2).submit([(job("a"),)])
    _until(handle.done)
    assert handle.result() == {"state": "done", "name": "a"}


@pytest.mark.variant
def test_a_process_that_dies_under_submitit_is_an_error_of_its_job(local):
    (handle,) = local(dies).submit([(job("a"), "killed")])
    _until(handle.done)
    with pytest.raises(Exception, match="has not produced any output"):
        handle.result()


@pytest.mark.variant
def test_a_job_over_its_time_under_submitit_leaves_a_note(local, tmp_path):
    limited = replace(job("a"), timeout_min=0.01)
    (tmp_path / "jobs" / limited.name).mkdir(parents=True)
    (handle,) = local(hangs).submit([(limited, tmp_path)])
    _until(handle.done)
    with pytest.raises(Exception, match="has not produced any output"):
        handle.result()
    note = work.read_state(work.job_folder(tmp_path, limited))
    assert (note["state"], note["error"]) == ("failed", "ended after timeout_min, 0.01 minutes")


def test_what_is_submitted_in_the_place_of_an_interrupted_job_is_the_same():
    again = _Requeued(dies).checkpoint(job("a"), "exits")
    assert (again.function.function, again.args, again.kwargs) == (dies, (job("a"), "exits"), {})


@pytest.mark.parametrize("status", [144, -1, None])
def test_a_job_that_is_told_to_end_is_neither_done_nor_failed(monkeypatch, tmp_path, status):
    """submitit ends a process that it has queued again by SystemExit, and Lightning one that got SIGTERM."""

    def told(*args):
        raise SystemExit(status)

    monkeypatch.setattr(work, "_fit_and_test", told)
    with pytest.raises(SystemExit) as end:
        work.run_job(job("a"), tmp_path)
    assert end.value.code == (143 if status is None else status)
    assert work.read_state(work.job_folder(tmp_path, job("a"))) is None


def test_a_preempted_process_waits_until_slurm_kills_it(monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            raise TimeoutError("killed")

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(TimeoutError):
        _Requeued(dies)(job("a"), "terminated")


def _without_times(folder: Path) -> list[dict]:
    rows = read_rows(folder / "results.jsonl")
    return [{k: v for k, v in row.items() if k not in ("seconds", "time")} for row in rows]


@pytest.mark.variant
def test_a_grid_through_submitit_gives_the_rows_of_this_process(command, tiny_grid, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    grid = tiny_grid(slurm={"timeout_min": 30, "slurm_partition": "gpu"}, runs=[{"pretrain": 0}])
    run = ("benchmark", "run", "-c", grid, "--only", "random", "segmentation_siim")
    assert "1 done" in command(*run, cwd=tmp_path).ok().out
    other = tmp_path / "other"
    assert "1 done" in command(*run, "--executor", "submitit-local", "--work", other, cwd=tmp_path).ok().out
    assert _without_times(other) == _without_times(tmp_path / "work")
    assert list(other.glob("submitit/*_log.out"))


# ---------------------------------------------------------------- SLURM


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands that stand in for SLURM's: sbatch keeps what it is given, and everything is pending for ever."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    commands, kept = tmp_path / "bin", tmp_path / "sbatch"
    commands.mkdir()
    kept.mkdir()
    scripts = {
        "sbatch": f'n=$(ls {kept} | wc -l); cp "$1" {kept}/$n.sh; echo "Submitted batch job $((700 + n))"',
        "scancel": f'echo "$@" >> {tmp_path}/cancelled',
        "sacct": "echo 'JobID|State|NodeList|'; echo '700_0|PENDING||'",
        "srun": "exit 1",
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return kept


def _flags(script: Path) -> dict[str, str]:
    words = [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def test_jobs_that_ask_for_the_same_are_one_array(slurm, tmp_path):
    parameters = {
        "timeout_min": 90,
        "slurm_partition": "a100",
        "pretrain": {"slurm_qos": "long", "timeout_min": 2880},
        "task": {"cpus_per_task": 9},
    }
    executor = Submitit(dies, tmp_path / "submitit", parameters)
    big = {"accelerator": "gpu", "devices": 8, "num_nodes": 2}
    small = {"accelerator": "auto", "devices": 1}
    jobs = [job("a", **small), job("g2d", "pretrain", **big), job("b", **small), job("c", **small)]
    handles = executor.submit([(given, tmp_path, None) for given in jobs])
    assert [handle.job.job_id for handle in handles] == ["700_0", "701", "700_1", "700_2"]
    tasks, pretrain = (_flags(slurm / f"{n}.sh") for n in (0, 1))
    assert (tasks["array"], tasks["nodes"], tasks["ntasks-per-node"], tasks["gpus-per-node"]) == (
        "0-2%3",
        "1",
        "1",
        "1",
    )
    assert (tasks["time"], tasks["partition"], tasks["cpus-per-task"], "qos" in tasks) == ("90", "a100", "9", False)
    assert "array" not in pretrain
    assert (pretrain["nodes"], pretrain["ntasks-per-node"], pretrain["gpus-per-node"]) == ("2", "8", "8")
    assert (pretrain["time"], pretrain["qos"], "cpus-per-task" in pretrain) == ("2880", "long", False)
    # Lightning would itself queue a job again on SIGUSR1
    assert pretrain["signal"].startswith("USR2@")
    assert "--kill-on-bad-exit=1" in (slurm / "1.sh").read_text()
    assert len(handles[1].job._sub_jobs) == 16
    executor.close()
    assert sorted((tmp_path / "cancelled").read_text().split()) == ["700_0", "700_1", "700_2", "701"]


def test_a_cluster_of_cpus_is_asked_for_no_gpu(slurm, tmp_path):
    Submitit(dies, tmp_path / "submitit", {}).submit([(job("a", accelerator="cpu"),)])
    assert "gpus-per-node" not in _flags(slurm / "0.sh")
    Submitit(dies, tmp_path / "submitit", {"slurm_gres": "gpu:a100:1"}).submit([(job("a", accelerator="auto"),)])
    flags = _flags(slurm / "1.sh")
    assert flags["gres"] == "gpu:a100:1"
    assert "gpus-per-node" not in flags


def test_jobs_that_slurm_refuses_are_told_with_its_words(slurm, tmp_path):
    executor = Submitit(dies, tmp_path / "submitit", {"slurm_partition": "a100"})
    (slurm.parent / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(ConfigError, match=r"the jobs were refused: .*invalid partition"):
        executor.submit([(job("a"),)])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"slurm_partitoin": "a100"}, "slurm_partitoin"),
        ({"colour": "red"}, "colour"),
        ({"timeout_min": "long"}, "timeout_min"),
        ({"task": {"slurm_gpu": 1}}, "slurm_gpu"),
    ],
)
def test_wrong_parameters_are_named_before_anything_runs(slurm, tmp_path, parameters, named):
    with pytest.raises(ConfigError, match=rf"^slurm: .*{named}"):
        Submitit(dies, tmp_path / "submitit", parameters)
    with pytest.raises(ConfigError, match=rf"^slurm: .*{named}"):
        Submitit(dies, tmp_path / "submitit", parameters, "local")


def test_where_there_is_no_slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"slurm: .*srun"):
        Submitit(dies, tmp_path / "submitit", {})


def test_without_submitit_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'medvlp\[slurm\]'"):
        Submitit(dies, tmp_path / "submitit", {})


# ---------------------------------------------------------------- a job of several processes, as srun starts them

RANK = """
import json, sys
from pathlib import Path
from medvlp.benchmark.grid import read_grid
from medvlp.benchmark.jobs import expand
from medvlp.benchmark.work import run_job
jobs = [job for job in expand(read_grid(sys.argv[1])) if job.kind == "pretrain"]
print(json.dumps(run_job(jobs[0], Path(sys.argv[2]))))
"""


def _as_srun(grid: Path, work: Path, rank: int, tasks: int, port: int) -> subprocess.Popen:
    variables = {"NTASKS": tasks, "NTASKS_PER_NODE": tasks, "PROCID": rank, "LOCALID": rank, "NODEID": 0, "NNODES": 1}
    variables |= {"JOB_ID": port - 15000, "JOB_NAME": "medvlp", "NODELIST": "127.0.0.1"}
    slurm = {f"SLURM_{name}": str(value) for name, value in variables.items()}
    return subprocess.Popen(
        [sys.executable, "-c", RANK, grid, work],
        stdout=subprocess.PIPE,
        text=True,
        cwd=grid.parent,
        env=environment(**slurm, MASTER_ADDR="127.0.0.1"),
    )


@pytest.mark.variant
def test_processes_of_one_job_share_the_folder_and_the_first_keeps_it(tiny_grid, tmp_path):
    grid = tiny_grid()
    config = yaml.safe_load((tmp_path / "g2d.yaml").read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    (tmp_path / "g2d.yaml").write_text(yaml.safe_dump(config))
    port = 15000 + os.getpid() % 10000
    ranks = [_as_srun(grid, tmp_path / "work", rank, 2, port) for rank in (0, 1)]
    notes = [json.loads(rank.communicate(timeout=HANG)[0]) for rank in ranks]
    assert [note["state"] for note in notes] == ["done", "done"], notes
    (folder,) = (tmp_path / "work" / "jobs").iterdir()
    assert json.loads((folder / "state.json").read_text()) == notes[0]
    assert notes[0]["cost"]["samples"] == 36, "the two share the images"
    assert notes[0]["cost"]["watts"] == 2 * 50, "of both devices"
    assert "checkpoint_sha256" not in notes[1]
    assert sorted(path.name for path in (folder / "rank1").iterdir()) == ["job.yaml", "log.txt"]
    assert (folder / "rank1" / "job.yaml").read_text() == (folder / "job.yaml").read_text()


def test_several_nodes_without_slurm_are_an_error_and_no_endless_wait(command, tiny_grid, tmp_path):
    grid = tiny_grid(pretrain={"set": {"trainer.num_nodes": 2}})
    result = command("benchmark", "run", "-c", grid, "--only", "g2d", "zero_shot_rsna", cwd=tmp_path)
    assert result.code == 1
    assert "trainer.num_nodes is 2, which takes --executor slurm" in result.out
