"""Runs ``medvlp`` in fresh processes that are forked from one which has its imports done.

A process of its own is what a user has: arguments, exit code, streams, signals. The seconds of importing torch,
Lightning and Transformers are spent once and not per test.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (negative: the signal), what it wrote, and how often it changed the disk."""

    code: int
    out: str
    err: str
    changes: int = 0

    def ok(self) -> "Result":
        """Itself, if the command succeeded."""
        assert self.code == 0, self.err[-4000:]
        return self

    def error(self) -> str:
        """The one line of a deliberate error; there must be no traceback, and no second line."""
        assert self.code == 1, (self.code, self.err[-4000:])
        assert "Traceback" not in self.err, self.err[-4000:]
        lines = [line for line in self.err.splitlines() if line.startswith("medvlp: error:")]
        assert len(lines) == 1, self.err[-4000:]
        assert self.err.splitlines()[-1] == lines[0], self.err[-4000:]
        return lines[0]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a test process: one thread, no hub, no display."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "COLUMNS": "200",
    }
    return {**os.environ, **quiet, **changes}


class CommandLine:
    """The ``medvlp`` command, called as ``command("fit", "--config", …)``.

    Args:
        folder: where the output of the commands is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(PYTHONPATH=path),
            cwd=folder,
        )

    def __call__(
        self,
        *argv: str | Path,
        cwd: Path | None = None,
        end_at: int = 0,
        end_by: signal.Signals = signal.SIGKILL,
        largest_file: int = 0,
    ) -> Result:
        """Runs one command and waits for its end.

        Args:
            *argv: of the command.
            cwd: where it runs.
            end_at: which change of the disk (a file opened for writing, renamed or removed, a folder made) it does not
                survive: it ends there as from SIGKILL; never if 0.
            end_by: another signal that it gets there.
            largest_file: bytes beyond which files cannot grow, as on a disk that is full; no limit if 0.
        """
        self._count += 1
        out, err = (self._folder / f"{self._count}.{stream}" for stream in ("out", "err"))
        job = {"argv": [str(a) for a in argv], "cwd": str(cwd or self._folder), "out": str(out), "err": str(err)}
        job |= {
            "end_at": end_at,
            "end_by": int(end_by),
            "largest_file": largest_file,
            "changes": str(self._folder / f"{self._count}.changes"),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code, changes = int(self._server.stdout.readline()), Path(job["changes"])
        count = int(changes.read_text()) if changes.is_file() else 0
        return Result(code, out.read_text(), err.read_text(), count)

    def close(self) -> None:
        """Ends the process that forks."""
        self._server.communicate()


def tiny_config(root: Path, run: Path, **data: Any) -> dict[str, Any]:
    """G2D on the tiny phantom: 6 steps per epoch, seconds per run, with BERT dropout and augmentation on."""
    return {
        "seed_everything": 7,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "default_root_dir": str(run),
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "dirpath": "${trainer.default_root_dir}/checkpoints",
                        "every_n_train_steps": 1,
                        "save_on_train_epoch_end": True,
                        "save_last": True,
                        "enable_version_counter": False,
                    },
                }
            ],
        },
        "model": {
            "class_path": "G2D",
            "init_args": {
                "variant": "paper",
                "image_size": 64,
                "prompts": "phantom",
                "image": {"name": "resnet18", "depth": 3},
                "text": {
                    "hidden_size": 32,
                    "num_layers": 1,
                    "num_heads": 2,
                    "vocab_size": 400,
                    "max_length": 32,
                    "pooling": "mean",
                    "dropout": True,
                },
                "optim": {"lr": 1e-3},
                "embed_dim": 16,
                "decoder_widths": [8, 8, 8],
            },
        },
        "data": {
            "class_path": "MIMICCXRDataModule",
            "init_args": {
                "root": str(root),
                "labels": "truth",
                "views": ["PA", "AP", ""],
                "transform": "phantom",
                "image_size": 64,
                "batch_size": 6,
                "num_workers": 0,
                **data,
            },
        },
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Writes a config as YAML and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _count_changes(end_at: int, end_by: int, report: Path) -> None:
    """Counts the changes of the disk by this process, and signals it at one of them."""
    count, own = 0, os.getpid()

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if os.getpid() == own and (writes or event in ("os.rename", "os.remove", "os.mkdir")):
            count += 1
            if count == end_at:
                os.kill(own, end_by)

    sys.addaudithook(seen)
    atexit.register(lambda: report.write_text(str(count)))


def _serve() -> None:
    """Forks one process per line of the standard input and answers with its exit code; returns in the forked one."""
    import torch._dynamo  # noqa: F401  (the first optimiser step imports it)
    import transformers.models.bert.modeling_bert  # noqa: F401

    import medvlp.cli
    from medvlp.phantom import layouts  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    sys.argv = ["medvlp", "fit", "--print_config"]
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    try:
        medvlp.cli.main()
    except SystemExit:
        sys.stdout.flush()
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            os.dup2(nothing, 0)
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(job["cwd"])
            sys.argv = ["medvlp", *job["argv"]]
            if job["largest_file"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
            _count_changes(job["end_at"], job["end_by"], Path(job["changes"]))
            return
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    _serve()
    from medvlp.cli import main

    main()
