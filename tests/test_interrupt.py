"""Ctrl-C ends every command with one line and status 130."""

import importlib
import signal

import pytest
from command_line import tiny_config, write_config

from medvlp import cli
from medvlp.cli import RUN_COMMANDS, TOOLS
from medvlp.phantom import PhantomSpec, write_phantom


def interrupted(result) -> bool:
    lines = result.err.splitlines()
    return result.code == 130 and lines.count("medvlp: interrupted") == 1 and "Traceback" not in result.err


def _raise(*args, **kwargs):
    raise KeyboardInterrupt


def _raise_as_lightning(*args, **kwargs):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904


PARTS = {
    **{name: ("medvlp.running", "build_cli", [name]) for name in RUN_COMMANDS},
    **{name: ("medvlp.cli", f"_{name}", [name, *more]) for name, more in (("list", []), ("phantom", ["--root", "x"]))},
    **{name: (module, "add_arguments", [name]) for name, (module, _) in TOOLS.items()},
}


@pytest.mark.parametrize("how", [_raise, _raise_as_lightning])
@pytest.mark.parametrize(("module", "function", "words"), PARTS.values(), ids=PARTS)
def test_every_command_says_so_in_one_line(monkeypatch, capsys, module, function, words, how):
    monkeypatch.setattr(importlib.import_module(module), function, how)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 130
    assert capsys.readouterr().err == "medvlp: interrupted\n"


def test_other_exits_keep_their_status(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_list", lambda what: (_ for _ in ()).throw(SystemExit(3)))
    with pytest.raises(SystemExit) as end:
        cli.main(["list"])
    assert end.value.code == 3
    assert capsys.readouterr().err == ""


def test_a_signal_in_the_midst_of_writing(command, tmp_path):
    argv = ("--studies", "40", "--size", "32", "--workers", "2")
    assert interrupted(command("phantom", "--root", tmp_path / "p", *argv, end_at=3, end_by=signal.SIGINT))
    root = write_phantom("mimic_cxr", tmp_path / "mimic", PhantomSpec(studies=6, size=32, laterals=0.0))
    words = ("prepare", "--data", "mimic_cxr", "--root", root, "--resize", "pad:32", "--workers", "1", "--out")
    changes = command(*words, tmp_path / "out").ok().changes
    for number in (1, changes // 2):
        assert interrupted(command(*words, tmp_path / f"out{number}", end_at=number, end_by=signal.SIGINT))


def test_a_signal_in_an_evaluation(command, tiny_phantom, tmp_path):
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny_phantom, tmp_path / "run"))
    command("fit", "--config", path, "--trainer.limit_train_batches", "1").ok()
    words = ("predict", "--config", tmp_path / "run/config.yaml", "--ckpt_path", tmp_path / "run/checkpoints/last.ckpt")
    changes = command(*words).ok().changes
    for number in (1, changes):
        assert interrupted(command(*words, end_at=number, end_by=signal.SIGINT)), number
