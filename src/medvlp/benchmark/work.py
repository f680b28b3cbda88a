"""Run one job in its own folder: fit, test, and record how it ended.

.. code-block:: text

    <work>/jobs/<job>/job.yaml       the whole config: medvlp fit --config job.yaml does the same by hand
                      log.txt        everything that was printed
                      checkpoints/   of pre-training; of a task's head until the job is done
                      results.jsonl  rows, as medvlp test writes them, beside predictions/
                      state.json     how it ended; without it the job has not ended
                      rank1/, …      config and log of the other processes of a job over several devices of a cluster

A cluster starts such a job once per device (``SLURM_PROCID`` counts the processes); the first keeps the folder (lock,
state, pictures). The others take part in what Lightning does and write nothing else.

Lightning is imported only when a job runs, so that the runner starts at once.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from medvlp.benchmark.configs import with_settings
from medvlp.benchmark.gridfile import Cost, record_of
from medvlp.benchmark.jobs import ENCODER, Job
from medvlp.errors import CheckpointError, ConfigError, DataError, MedVLPError
from medvlp.results import parse_json, read_json, read_rows
from medvlp.store import atomic_write, file_sha256

STATE, LOG, RESULTS = "state.json", "log.txt", "results.jsonl"
_FITTED, _LAST = "fitted", "checkpoints/last.ckpt"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATIENCE = 20.0
"""Seconds to wait for the job's folder: processes of a killed run end within that time."""
_BAD_ARGUMENTS = 2
TERMINATED = 128 + signal.SIGTERM
"""Exit status of a job that was asked to end: it is neither done nor failed, and resumes the next time."""


def job_folder(work: Path, job: Job) -> Path:
    """Return the folder of a job."""
    return work / "jobs" / job.name


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``state.json``; None if the job has not ended, or, with a warning, if it is damaged."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state = read_json(path, "the job is run again")
        if wrong := _wrong_of(state):
            raise DataError(f"{path}: {wrong}; the job is run again")
    except DataError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    return state


def _wrong_of(state: dict[str, Any]) -> str:
    if state.get("state") not in ("done", "failed"):
        return "state is neither done nor failed"
    if not isinstance(state.get("seconds"), int | float) or not 0 <= state["seconds"] < 1e12:
        return "seconds is not a duration"
    all_texts = ("error", "checkpoint", "checkpoint_sha256", "results_sha256")
    texts = all_texts[:1] if state["state"] == "failed" else all_texts[1:]
    if any(not isinstance(state.get(key, ""), str) for key in all_texts) or not any(state.get(key) for key in texts):
        return f"none of {', '.join(texts)} is a string" if len(texts) > 1 else "error is not a string"
    try:
        record_of(Cost | None, state.get("cost"), "cost")
    except DataError as error:
        return str(error).partition(";")[0]
    return ""


def is_done(work: Path, job: Job) -> bool:
    """Return whether a job is done and its stored results are unchanged."""
    state = read_state(job_folder(work, job))
    if state is None or state["state"] != "done":
        return False
    if job.kind == "pretrain":
        return "checkpoint" in state and "checkpoint_sha256" in state
    results = job_folder(work, job) / RESULTS
    return results.is_file() and file_sha256(results) == state.get("results_sha256")


def checkpoint_of(work: Path, job: Job) -> Path:
    """Return the checkpoint of a pre-training job that is done; it must be the one that results were made with."""
    folder = job_folder(work, job)
    state = read_state(folder) or {}
    path: Path = folder / state.get("checkpoint", _LAST)
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint is gone; delete {folder / STATE} to pre-train again")
    if file_sha256(path) != state.get("checkpoint_sha256"):
        raise CheckpointError(
            f"{path}: the checkpoint has changed since results were written with it; restore it, or delete {folder} "
            "and the folders of the jobs that used it"
        )
    return path


def run_job(job: Job, work: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Run a job, or resume it, from the checkpoint of the pre-training job that it needs.

    Returns:
        The content of ``state.json``: "state" is "done" or "failed", with the reason in "error".

    Raises:
        SystemExit: it was asked to end (preempted, out of time, SIGTERM).
    """
    folder = job_folder(work, job)
    _folder_of_rank(folder).mkdir(parents=True, exist_ok=True)
    if _rank():
        return _run_and_record(job, folder, work, checkpoint)
    try:
        with FileLock(folder / ".lock", timeout=_PATIENCE):
            (folder / STATE).unlink(missing_ok=True)
            state = _run_and_record(job, folder, work, checkpoint)
            with contextlib.suppress(OSError):  # the disk may be full; the state is returned anyway
                _write(folder / STATE, state)
                # only now: a job killed before this point is tested again, with these checkpoints
                if job.kind == "task" and state["state"] == "done" and not job.keep:
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            return state
    except Timeout:
        return _failed(f"{folder}: another run is working on this job", 0.0)


def leave_note(job: Job, work: Path, error: str, seconds: float = 0.0) -> dict[str, Any]:
    """Record that a job failed, on behalf of a process that no longer can; return the state."""
    note = _failed(error, seconds)
    with contextlib.suppress(OSError):
        job_folder(work, job).mkdir(parents=True, exist_ok=True)  # its process may have died before it began
        _write(job_folder(work, job) / STATE, note)
    return note


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


def _folder_of_rank(folder: Path) -> Path:
    return folder / f"rank{_rank()}" if _rank() else folder


def _run_and_record(job: Job, folder: Path, work: Path, checkpoint: Path | None) -> dict[str, Any]:
    start, log = time.monotonic(), _folder_of_rank(folder) / LOG
    try:
        with _logged(log, job.name):
            try:
                _fit_and_test(job, folder, work, checkpoint)
            except BaseException:
                traceback.print_exc()
                raise
        return _done(job, folder, time.monotonic() - start)
    except KeyboardInterrupt:
        raise
    except SystemExit as end:
        if end.code != _BAD_ARGUMENTS:
            # Lightning ends in this way after SIGTERM or SIGINT, submitit after it has queued the job again
            raise SystemExit(end.code or TERMINATED) from end
        return _failed(_message(end, log), time.monotonic() - start)
    except BaseException as error:
        return _failed(_message(error, log), time.monotonic() - start)


def _message(error: BaseException, log: Path) -> str:
    if isinstance(error, SystemExit):
        # what the argument parser wrote last, which may be several lines; the traceback below quotes its code
        attempt = log.read_text(errors="replace").rpartition("\n--- ")[2]
        text = attempt.partition("Traceback (most recent")[0].rpartition("error:")[2]
        return " ".join(text.split()) or f"ended with status {error.code}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"the disk is full ({error.filename or log.parent}): free space, then run again"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, MedVLPError) else f"{type(error).__name__}: {text}"


def _failed(error: str, seconds: float) -> dict[str, Any]:
    return {"state": "failed", "error": error[:2000], "seconds": round(seconds, 2)}


def _done(job: Job, folder: Path, seconds: float) -> dict[str, Any]:
    state: dict[str, Any] = {"state": "done", "seconds": round(seconds, 2)}
    if _rank():  # the first process writes the rows, perhaps at this moment
        return state
    with contextlib.suppress(OSError, ValueError):
        state["cost"] = parse_json((folder / "cost.json").read_bytes())
    if job.kind == "pretrain":
        return state | {"checkpoint": _LAST, "checkpoint_sha256": file_sha256(folder / _LAST)}
    rows = read_rows(folder / RESULTS)
    if not rows:
        raise DataError(f"{folder / RESULTS}: the test wrote no row")
    return state | {"rows": len(rows), "results_sha256": file_sha256(folder / RESULTS)}


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file)


def _config(job: Job, folder: Path, work: Path, checkpoint: Path | None) -> Path:
    """Write the job's config with its folder, its encoder and the runner's callbacks."""
    settings: dict[str, Any] = {"trainer.default_root_dir": str(folder)}
    if job.kind == "task" and job.trains:
        settings["model.init_args.features_dir"] = str(work / "features")
    if job.needs is not None:
        assert checkpoint is not None
        assert job.config["model"]["init_args"]["encoder"]["checkpoint"] == ENCODER
        settings["model.init_args.encoder.checkpoint"] = str(checkpoint)
    config = with_settings(job.config, settings)
    devices, nodes = devices_and_nodes(job)
    watts = job.watts and job.watts * devices * nodes
    config["trainer"]["callbacks"] = [
        *config["trainer"].get("callbacks", []),
        {"class_path": "medvlp.benchmark.callbacks.StayStopped"},
        {"class_path": "medvlp.benchmark.callbacks.CostMeter", "init_args": {"watts": watts}},
    ]
    path = _folder_of_rank(folder) / "job.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def devices_and_nodes(job: Job) -> tuple[int, int]:
    """Return the numbers of devices per node and of nodes; what its config leaves to Lightning counts as one."""
    trainer = job.config.get("trainer", {})
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if isinstance(devices, list):
        devices = len(devices)
    return (int(devices) if str(devices).isdigit() else 1), int(nodes)


def _fit_and_test(job: Job, folder: Path, work: Path, checkpoint: Path | None) -> None:
    nodes = devices_and_nodes(job)[1]
    if nodes > 1 and "SLURM_PROCID" not in os.environ:
        raise ConfigError(
            f"{job.method}: trainer.num_nodes is {nodes}, which takes --executor slurm; for one node set "
            "trainer.num_nodes to 1 in the grid"
        )
    config = _config(job, folder, work, checkpoint)
    last, best = folder / _LAST, folder / "checkpoints" / "best.ckpt"
    cli = None
    if job.trains and not (folder / _FITTED).is_file():
        cli = _medvlp("fit", config, last if last.is_file() else None, job)
        (folder / _FITTED).touch()
    if job.kind == "pretrain":
        return
    (folder / RESULTS).unlink(missing_ok=True)  # of a test that was interrupted
    weights = (best if best.is_file() else last) if job.trains else None
    if cli is None:
        cli = _medvlp("test", config, weights, job)
    else:  # what is built already need not be parsed and built again
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=weights)
    if job.panels and cli is not None and not _rank():
        from medvlp.benchmark.panels import write_panels

        write_panels(cli.model, cli.datamodule, folder / "panels.npz", job.panels)


def _medvlp(command: str, config: Path, checkpoint: Path | None, job: Job) -> Any:
    """Run ``medvlp fit`` or ``test``, in this process if it needs one device, since imports are slow."""
    words = [command, "--config", str(config)]
    if checkpoint is not None:
        words += ["--ckpt_path", str(checkpoint)]
    elif command == "fit":  # a job that was killed before its first last.ckpt begins again
        words += ["--overwrite", "true"]
    if job.config["trainer"].get("devices", 1) in (1, "1", [0]) or "SLURM_PROCID" in os.environ:
        from medvlp.running import build_cli

        return build_cli(words)
    subprocess.run([sys.executable, "-m", "medvlp", *words], check=True)
    return None


@contextlib.contextmanager
def _logged(path: Path, title: str) -> Iterator[None]:
    """Append everything that this process prints, native libraries included, to a file, below time and title."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "160"
    with path.open("ab") as log:
        log.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {title}\n".encode())
        log.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            # Python's own streams stay as they are: loggers keep a reference, which must not be to a closed one
            sys.stdout.flush()
            sys.stderr.flush()
            for number, handle in zip((1, 2), kept, strict=True):
                os.dup2(handle, number)
                os.close(handle)
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns
