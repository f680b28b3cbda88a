"""Mutated checkpoints: what is in the payload and among the weights, and the bytes of the file.

How to run them: ``test_tables.py``. What loads must be the weights that the file holds, and must be usable.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import chests, sizes, tokenizer
from mutations import Kind, Trial, attempt, command, copied, mutate_bytes, mutate_value, odd, refused

from medvlp.registry import get_method
from medvlp.training.schema import CHECKPOINT_KEY
from medvlp.weights import load


def sound_method(folder: Path, name: str) -> Path:
    torch.manual_seed(1)
    model = get_method(name)(**sizes())
    model.attach_tokenizer(tokenizer())
    model.preprocess = {"transform": "plain", "size": 32, "intensity": "standard"}
    path = folder / f"{name}.ckpt"
    model.save(path)
    return path


def odd_tensor(trial: Trial, value: torch.Tensor) -> Any:
    """Another shape, type, or no tensor at all."""
    line = value if value.ndim else value[None]
    kinds: list[Any] = [value.flatten(), line[:0], line.unsqueeze(0), line.expand(2, *line.shape), line.T.contiguous()]
    kinds += [value * float("nan"), value * 1e30, torch.zeros(()), None, 1, value.flatten()[:5].tolist()]
    kinds += [value.to(kind) for kind in (torch.half, torch.double, torch.int64, torch.complex64, torch.bfloat16, bool)]
    kinds += [line.to_sparse(), torch.empty(value.shape, device="meta"), np.zeros(3)]
    return trial.one(kinds)


class Methods(Kind):
    """Checkpoints of methods: hyper-parameters, tokenizer, prompts, weights."""

    name, share = "method", 22

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.paths = [sound_method(folder, name) for name in ("g2d", "convirt")]
        self.contents = [torch.load(path, weights_only=True) for path in self.paths]

    def trial(self, trial: Trial) -> None:
        content = copied(trial.one(self.contents))
        weights = content["state_dict"]
        what = trial.pick("payload payload payload top tensor tensor names both")
        name, key = trial.one(list(weights)), trial.one([CHECKPOINT_KEY, "state_dict"])
        trial.note(f"{what} {name if what in ('tensor', 'names') else ''}")
        if what in ("payload", "both"):
            content[CHECKPOINT_KEY] = mutate_value(trial, content[CHECKPOINT_KEY])
        if what == "top":
            content[key] = trial.one([odd(trial), None, [], {}, list(weights), {1: torch.zeros(1)}, "x"])
        elif what == "tensor":
            weights[name] = odd_tensor(trial, weights[name])
        elif what in ("names", "both"):
            weights[trial.one([f"module.{name}", "", "x", name.upper(), 3])] = weights.pop(name)
        path = trial.folder / "m.ckpt"
        try:
            torch.save(content, path)
        except Exception:  # such a value cannot be in a file
            return
        model = attempt(load, path)
        if refused(model):
            return
        saved = torch.load(path, weights_only=True)["state_dict"]
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):  # read by nothing
                continue
            given = saved[name]
            same = torch.equal(value, given.to(value.dtype)) if given.dtype != torch.bool else True
            assert same, f"{name} is not what the file holds"
            assert not value.is_floating_point() or value.isfinite().all(), f"{name} is not finite"
        for call, argument in ((model.embed_image, chests(1, 32)), (model.embed_text, ["no edema"])):
            result = attempt(call, argument)
            assert refused(result) or all(part.isfinite().all() for part in leaves(result)), (
                f"{call.__name__} is not finite"
            )


def leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for part in parts for leaf in leaves(part)]


class Archives(Kind):
    """The bytes of a checkpoint: a zip file, in which every member has its checksum."""

    name, share = "archive", 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = sound_method(folder, "convirt")
        self.data = self.path.read_bytes()
        self.sound = {name: value.clone() for name, value in load(self.path).state_dict().items()}
        with zipfile.ZipFile(self.path) as archive:
            self.members = [(m.filename, m.header_offset) for m in archive.infolist()]

    def trial(self, trial: Trial) -> None:
        what = trial.pick("anywhere member end again without")
        trial.note(what)
        resized, path = True, trial.folder / "m.ckpt"
        if what == "anywhere":
            path.write_bytes(mutate_bytes(trial, self.data))
        elif what == "member":
            name, at = trial.one(self.members)
            trial.note(name)
            path.write_bytes(self.data[:at] + mutate_bytes(trial, self.data[at : at + 300]) + self.data[at + 300 :])
        elif what == "end":
            path.write_bytes(self.data[:-3000] + mutate_bytes(trial, self.data[-3000:]))
        else:
            chosen, _ = trial.one(self.members)
            trial.note(chosen)
            with zipfile.ZipFile(self.path) as archive, zipfile.ZipFile(path, "w", trial.one([0, 8])) as other:
                for member in archive.infolist():
                    data = archive.read(member)
                    if member.filename == chosen and what == "again":
                        data = mutate_bytes(trial, data)
                        resized = len(data) != member.file_size
                    if member.filename != chosen or what == "again":
                        other.writestr(member.filename, data)
        model = attempt(load, path)
        if refused(model) or not resized:  # other numbers with their own checksum are what the file says
            return
        wrong = [name for name, value in model.state_dict().items() if not torch.equal(value, self.sound[name])]
        assert not wrong, f"{len(wrong)} weights differ, as {wrong[0]}"


HEAD = """
trainer: {accelerator: cpu, devices: 1, max_epochs: 1, logger: false, enable_progress_bar: false, limit_val_batches: 1,
  enable_model_summary: false, num_sanity_val_steps: 0, limit_train_batches: 1, default_root_dir: FOLDER/run,
  callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoint,
    init_args: {dirpath: FOLDER/run, save_last: true}}]}
model: {class_path: Classification, init_args: {encoder: {image: {name: test_resnet, depth: 2}}, protocol: linear,
  image_size: 32, resamples: 0, features: live}}
data: {class_path: RSNADataModule, init_args: {root: ROOT, split: clean, transform: plain, image_size: 32,
  batch_size: 4, num_workers: 0}}
"""


class Heads(Kind):
    """Checkpoints of tasks, through ``medvlp test``."""

    name, share = "head", 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from medvlp.phantom import PhantomSpec, write_phantom

        root = write_phantom("rsna", folder / "rsna", PhantomSpec(studies=24, size=32))
        self.config = folder / "c.yaml"
        self.config.write_text(HEAD.replace("FOLDER", str(folder)).replace("ROOT", str(root)))
        assert command("fit", "--config", self.config) == 0
        self.content = torch.load(folder / "run" / "last.ckpt", weights_only=True)

    def trial(self, trial: Trial) -> None:
        content = copied(self.content)
        weights = content["state_dict"]
        what = trial.pick("payload payload top tensor loops bytes")
        trial.note(what)
        if what == "payload":
            content[CHECKPOINT_KEY] = mutate_value(trial, content[CHECKPOINT_KEY])
        elif what == "tensor":
            name = trial.one([n for n in weights if not n.startswith("encoder.")] or list(weights))
            weights[name] = odd_tensor(trial, weights[name])
            trial.note(f"{name} {type(weights[name]).__name__}")
        elif what == "top":
            key = trial.one(list(content))
            trial.note(key)
            content[key] = odd(trial)
        elif what == "loops":
            content = mutate_value(
                trial, content, within=lambda path: path[0] not in ("state_dict", "optimizer_states")
            )
        path = trial.folder / "h.ckpt"
        try:
            torch.save(content, path)
        except Exception:
            return
        if what == "bytes":
            path.write_bytes(mutate_bytes(trial, path.read_bytes()))
        command("test", "--config", self.config, "--ckpt_path", path, "--trainer.default_root_dir", trial.folder)


@pytest.mark.parametrize("kind", [Methods, Archives, Heads], ids=lambda kind: kind.name)
def test_mutated_checkpoints(kind, mutations):
    mutations(kind)
