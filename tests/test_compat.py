"""The private names that ``medvlp.compat`` and ``medvlp.distributed`` reach for are still there."""

import ast
import inspect
from pathlib import Path

import lightning as L
import medvlp_baselines
import pytest
import torch
from helpers import trainer
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

import medvlp
from medvlp import compat


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (ModelCheckpoint, ["_save_last_checkpoint", "_monitor_candidates"]),
        (_TrainingEpochLoop, ["_num_ready_batches_reached", "_is_training_done", "_should_check_val_fx"]),
        (_TrainingEpochLoop, ["update_lr_schedulers"]),
        (LightningCLI, ["_parse_ckpt_path", "_set_seed", "_run_subcommand", "_prepare_subcommand_kwargs"]),
        (torch.distributed.distributed_c10d, ["_set_pg_timeout"]),
        (torch.nn.Module, ["_apply"]),
        (torch.Tensor, ["_indices", "_values"]),
    ],
)
def test_methods_are_there(owner, names):
    assert [name for name in names if not hasattr(owner, name)] == []


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (ModelCheckpoint, ["_last_global_step_saved", "_last_checkpoint_saved"]),
        (_FitLoop, ["_data_fetcher", "_restarting"]),
        (_SignalConnector, ["_original_handlers", "received_sigterm"]),
        (DDPStrategy, ["_timeout"]),
        (L.LightningModule, ["_trainer"]),
        (L.Trainer, ["_signal_connector"]),
    ],
)
def test_attributes_are_used(owner, names):
    """Set in the class, or in one that it inherits from."""
    source = "".join(inspect.getsource(kind) for kind in owner.__mro__ if kind not in (object, torch.nn.Module))
    assert [name for name in names if f"self.{name}" not in source] == []


def test_fused_optimisers_are_told_by_their_mark(tmp_path):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    assert optimizer._step_supports_amp_scaling
    compat.unscale_before_step(optimizer)
    assert not optimizer._step_supports_amp_scaling


def test_trainers(tmp_path):
    assert compat.trainer_of(L.LightningModule()) is None
    run = trainer(tmp_path)
    assert compat.handlers_before_training(run) == {}
    assert not compat.epoch_complete(run)


def test_steps_of_the_command_line_are_called():
    """An override of a private method that nobody calls any more would be silent."""
    source = inspect.getsource(LightningCLI)
    names = ("_parse_ckpt_path()", "_set_seed()", "_run_subcommand(", "_prepare_subcommand_kwargs(")
    assert [name for name in names if f"self.{name}" not in source] == []


def test_options_of_a_parser():
    parser = ArgumentParser(default_env=False)
    parser.add_argument("--views", type=int)
    parser.add_argument("--cleaning")
    assert compat.option_names(parser) == ["cleaning", "views"]


def test_print_options_of_tensors_are_restored():
    before = str(torch.tensor([1.23456, 2e5]))
    with compat.keep_print_options():
        torch.set_printoptions(precision=1, sci_mode=False)
        assert str(torch.tensor([1.23456, 2e5])) != before
    assert str(torch.tensor([1.23456, 2e5])) == before


def test_private_names_of_other_libraries_stay_in_one_module():
    """Private imports, and private attributes of anything but ``self``, ``cls`` and a copy that a method makes."""
    sources = Path(medvlp.__file__).parent
    places = {}
    for path in sorted([*sources.rglob("*.py"), *Path(medvlp_baselines.__file__).parent.rglob("*.py")]):
        if path.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("medvlp", "__future__")):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()", "new"):
                names = [node.attr]
            else:
                continue
            if private := [n for n in names if n.startswith("_") and not n.endswith("__") and n != "_exit"]:
                places.setdefault(path.name, []).extend(private)
    assert places == {}
