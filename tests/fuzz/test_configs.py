"""Mutated YAML: configs of runs through ``medvlp fit`` and ``test``, grids of benchmarks.

How to run them: ``test_tables.py``. A config is run as far as one batch: what it says must be
done, or refused in one line.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from mutations import TEXTS, Kind, Trial, attempt, command, mutate_bytes, mutate_value, refused

from medvlp.benchmark.grid import read_grid
from medvlp.benchmark.jobs import expand

TAGGED = ["!!python/object/apply:os.system [exit 1]", "!!binary x", "!!float x", "!!int x", "!!timestamp x", "!x y"]
TAGGED += ["!!set {a}", "2026-13-45", "0o9", "1:60", "!!null x", "? x", "!!omap [a]", "!!bool x", "<<"]


def yaml_bytes(trial: Trial, value: Any) -> bytes:
    """YAML as people write it, now and then damaged."""
    options = {"sort_keys": trial.often(0.5), "allow_unicode": trial.often(0.5)}
    try:
        text = yaml.safe_dump(value, **options)
    except RecursionError:  # deeper than PyYAML writes; JSON is YAML too
        text = json.dumps(value)
    damages = "bytes bytes utf-16 latin-1 tab anchor tag deep twice bomb many"
    how = trial.pick(damages) if trial.often(0.5) else "plain"
    if how != "plain":
        trial.note(how)
    lines = text.splitlines()
    at = int(trial.rng.integers(len(lines)))
    if how == "tab":
        lines[at] = "\t" + lines[at]
    elif how == "anchor":
        lines[at] += trial.one([" &a", " *a", " <<: *b", " !!str", " |", " >-", ":", " #", " - x", " {", " ["])
    elif how == "tag":
        lines[at] = lines[at].partition(": ")[0] + ": " + trial.one(TAGGED)
    elif how == "twice":
        lines.insert(at, lines[at])
    elif how == "deep":
        lines.append("x: " + "[" * trial.one([500, 5_000, 50_000]))
    elif how == "bomb":  # a billion laughs
        lines += ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
    elif how == "many":
        lines += ["---", "a: 1"]
    data = "\n".join(lines).encode(how if how.startswith(("utf", "latin")) else "utf-8", "replace")
    return mutate_bytes(trial, data) if how == "bytes" else data


def plain(value: Any) -> Any:
    """Without what the YAML writer has no words for: lone surrogates and numbers of thousands of digits."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.replace("\ud800", "?")
    return value if not isinstance(value, int) or abs(value) < 10**400 else 10**300


GRID = """
grid: {name: g, work: FOLDER/w, fractions: [0.1, 1.0], watts: 5, title: G, slurm: {timeout_min: 3},
  runs: [{pretrain: 0, data: 0, head: 0}, {pretrain: 1, data: 1, head: 0, fractions: [0.1]}],
  pretrain: {set: {trainer.max_epochs: 2}, overlays: []}, task_set: {data.init_args.batch_size: 4},
  methods: {
    g2d: {pretrain: FOLDER/g2d.yaml, title: G2D, minutes: 3, set: {trainer.devices: 1}},
    random: {encoder: {image: {name: resnet18}}, cannot: [zero], task_set: {linear: {seed_everything: 3}}}},
  tasks: {linear: {config: FOLDER/linear.yaml, by_fraction: {0.1: {trainer.max_epochs: 9}}, minutes: 1, panels: 2},
    zero: {config: FOLDER/zero.yaml, metric: auroc}}}
linear: {trainer: {max_epochs: 1, callbacks: [{class_path: RichProgressBar}]}, data: {class_path: RSNADataModule},
  model: {class_path: Classification, init_args: {protocol: linear}}}
zero: {model: {class_path: ZeroShotClassification}, data: {class_path: RSNADataModule}}
g2d: {model: {class_path: G2D, init_args: {variant: paper}}, data: {class_path: MIMICCXRDataModule}}
"""


class Grids(Kind):
    """Grids of benchmarks and the configs that they name."""

    name, share = "grid", 16

    def trial(self, trial: Trial) -> None:
        folder = trial.folder
        files: dict[str, Any] = yaml.safe_load(GRID.replace("FOLDER", str(folder)))
        target = trial.pick("grid grid grid linear g2d")
        trial.note(target)
        for _ in range(int(trial.one([0, 1, 1, 2]))):
            files[target] = mutate_value(trial, files[target]) if files[target] else files[target]
        for name, content in files.items():
            data = yaml_bytes(trial, plain(content)) if name == target else yaml.safe_dump(content).encode()
            (folder / f"{name}.yaml").write_bytes(data)
        found = attempt(read_grid, folder / "grid.yaml")
        if refused(found):
            return
        jobs = attempt(expand, found)
        if refused(jobs):
            return
        said = yaml.safe_load((folder / "grid.yaml").read_bytes())
        assert set(found.methods) == {str(name) for name in said["methods"]}
        assert {job.task for job in jobs if job.kind == "task"} <= set(found.tasks)
        assert len({job.hash for job in jobs}) == len(jobs)
        assert all(job.fraction is None or 0 < job.fraction <= 1 for job in jobs)
        assert all(job.minutes >= 0 for job in jobs), "minutes below zero"


CONFIG = """
seed_everything: 1
trainer: {accelerator: cpu, devices: 1, max_epochs: 1, limit_train_batches: 1, limit_val_batches: 1, logger: false,
  default_root_dir: RUN, enable_progress_bar: false, enable_checkpointing: false, enable_model_summary: false,
  num_sanity_val_steps: 0, precision: 32-true, gradient_clip_val: 1.0, callbacks: []}
model: {class_path: ConVIRT, init_args: {image_size: 32, embed_dim: 8,
  image: {name: test_resnet, depth: 2, pretrained: false}, optim: {lr: 0.001, weight_decay: 0.01},
  text: {hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 200, max_length: 12}}}
data: {class_path: PairsDataModule, init_args: {table: TABLE, image_column: image, text_column: text,
  split_column: split, label_columns: [Edema], batch_size: 2, image_size: 32, num_workers: 0, transform: plain}}
"""


class Configs(Kind):
    """Configs of ``medvlp fit`` and ``medvlp test``."""

    name, share = "config", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from helpers import write_pairs

        self.table = write_pairs(folder / "pairs", count=8)

    def trial(self, trial: Trial) -> None:
        content = yaml.safe_load(CONFIG.replace("RUN", str(trial.folder / "run")).replace("TABLE", self.table))
        # nobody knows how long a run may be that is asked for, nor how large a model; devices start this process again
        kept = ("callbacks", "devices", "limit_train_batches", "limit_val_batches", "max_epochs", "default_root_dir")
        for _ in range(int(trial.one([1, 1, 2]))):
            content = mutate_value(trial, content, within=lambda path: path[-1] not in kept and len(path) > 1)
        path = trial.folder / "c.yaml"
        path.write_bytes(yaml_bytes(trial, plain(content)))
        os.chdir(trial.folder)
        limits = ("--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1")
        words = ["--trainer.fast_dev_run", "1"] if trial.often(0.3) else ["--trainer.max_epochs", "1"]
        command("fit", "--config", path, *words, *limits)


class Words(Kind):
    """Arguments of the small commands."""

    name, share = "words", 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from medvlp.phantom import PhantomSpec, write_phantom

        write_phantom("rsna", folder / "rsna", PhantomSpec(studies=3, size=32))

    def trial(self, trial: Trial) -> None:
        root, out = str(self.folder / "rsna"), str(trial.folder / "out")
        words = trial.one([
            f"phantom --layout rsna --root {out} --studies 1 --size 32 --noise 1 --prevalence 1 --findings Nodule",
            f"doctor --data rsna --root {root} --json {out}",
            f"prepare --data rsna --root {root} --out {out} --resize square:16 --workers 1 --task detection",
            f"prepare --data rsna --root {root} --out {out} --size 16 --intensity standard --verify",
            f"view --data rsna --root {root} --out {out} --count 1",
            "benchmark table --reported-only --layout g2d",
        ])  # fmt: skip
        words = words.split()
        others = [text for text in TEXTS if text not in ("~", "../../x", ".", "\ud800")]
        for _ in range(int(trial.one([1, 1, 2]))):
            at = int(trial.rng.integers(1, len(words)))
            value = trial.one([*others, "2", "1e3", "-5", "square:0", "a=b", "classes=x", "split=y"])
            if trial.often(0.7):
                words[at] = value
            elif trial.often(0.5):
                words.insert(at, value)
            else:
                del words[at]
        large = any(len(word) > 5 and word.isdigit() for word in words)
        if large or (words[0] == "phantom" and "--studies" not in words):
            return  # a large request is none of the faults that are sought
        trial.note(" ".join(w[:40] for w in words))
        os.chdir(trial.folder)
        command(*words)


@pytest.mark.parametrize("kind", [Grids, Configs, Words], ids=lambda kind: kind.name)
def test_mutated_configs(kind, mutations):
    mutations(kind)
