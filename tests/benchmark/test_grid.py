"""Grids are read, checked and turned into jobs."""

import pytest
import yaml

from medvlp.benchmark.configs import merged, with_settings
from medvlp.benchmark.grid import Grid, read_grid
from medvlp.benchmark.jobs import Job, expand
from medvlp.errors import ConfigError


def _changed(path, **changes):
    """The written grid with parts replaced; None takes one out."""
    content = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
    return path


def _jobs(path) -> list[Job]:
    return expand(read_grid(path))


def test_every_combination_once(tiny_grid):
    jobs = _jobs(tiny_grid())
    assert [job.kind for job in jobs].index("task") == 1, "one pre-training for both runs, and it comes first"
    found = {(j.method, j.task, j.fraction, j.run) for j in jobs if j.kind == "task"}
    runs = ("p0d0h0", "p0d1h1")
    wanted = {(m, "linear_rsna", f, r) for m in ("random", "g2d") for f in (0.5, 1.0) for r in runs}
    wanted |= {(m, "segmentation_siim", 1.0, r) for m in ("random", "g2d") for r in runs}
    # nothing is trained, so the second run would be the first again; and random weights have no text side
    wanted |= {("g2d", "zero_shot_rsna", None, runs[0])}
    assert found == wanted
    assert len({job.hash for job in jobs}) == len(jobs)
    assert all((job.needs == jobs[0].hash) == (job.method == "g2d") for job in jobs[1:])


def test_seeds_fraction_and_settings_reach_the_config(tiny_grid):
    path = tiny_grid()
    tasks = yaml.safe_load(path.read_text())["tasks"]
    tasks["linear_rsna"] |= {
        "protocol": "linear_mgca",
        "set": {"trainer.max_epochs": 7},
        "by_fraction": {0.5: {"trainer.max_epochs": 9}},
    }
    jobs = _jobs(_changed(path, tasks=tasks, task_set={"model.init_args.resamples": 11}))
    chosen = {j.fraction: j.config for j in jobs if (j.method, j.task, j.run) == ("g2d", "linear_rsna", "p0d1h1")}
    assert {f: c["trainer"]["max_epochs"] for f, c in chosen.items()} == {0.5: 9, 1.0: 7}
    for fraction, config in chosen.items():
        assert config["seed_everything"] == config["data"]["init_args"]["seed"] == 1
        assert config["data"]["init_args"]["fraction"] == fraction
        assert config["model"]["init_args"]["protocol"] == "linear_mgca"
        assert config["model"]["init_args"]["resamples"] == 11
    random = next(j for j in jobs if j.method == "random" and j.run == "p0d1h1")
    assert random.config["model"]["init_args"]["encoder"]["seed"] == 0, "the weights are of the pre-training's seed"


def test_the_hash_is_of_what_numbers_depend_on(tiny_grid, tmp_path):
    before = {(j.method, j.task, j.fraction, j.run): j.hash for j in _jobs(tiny_grid())}
    path = tiny_grid(name="other", work=str(tmp_path / "elsewhere"))
    assert {(j.method, j.task, j.fraction, j.run): j.hash for j in _jobs(path)} == before
    config = tmp_path / "linear.yaml"
    content = yaml.safe_load(config.read_text())
    config.write_text("# a comment\n" + yaml.safe_dump(with_settings(content, {"trainer.default_root_dir": "x"})))
    assert {(j.method, j.task, j.fraction, j.run): j.hash for j in _jobs(path)} == before
    config.write_text(yaml.safe_dump(with_settings(content, {"trainer.max_epochs": 5})))
    after = {(j.method, j.task, j.fraction, j.run): j.hash for j in _jobs(path)}
    assert {key[1] for key in after if after[key] != before[key]} == {"linear_rsna"}
    pretrain = tmp_path / "g2d.yaml"
    pretrain.write_text(yaml.safe_dump(with_settings(yaml.safe_load(pretrain.read_text()), {"trainer.max_epochs": 2})))
    again = {(j.method, j.task, j.fraction, j.run): j.hash for j in _jobs(path)}
    assert {key[0] for key in again if again[key] != after[key]} == {"g2d"}, "the tasks of a method change with it"


PINNED = {
    "grid.yaml": """
name: pinned
fractions: [0.1, 1.0]
runs: [{name: a}, {name: b, data: 1, head: 2, fractions: [0.1]}, {name: c, pretrain: 3}]
pretrain: {set: {trainer.max_epochs: 2}, overlays: [over.yaml]}
task_set: {model.init_args.resamples: 50}
methods:
  random: {encoder: {image: {name: resnet18}}}
  weights: {encoder: {image: {name: resnet18, weights: some.pth}}, tasks: [linear]}
  mine: {checkpoint: mine.ckpt, cannot: [linear]}
  g2d: {pretrain: g2d.yaml, set: {model.init_args.variant: main}, task_set: {linear: {trainer.max_epochs: 4}}}
tasks:
  linear: {config: linear.yaml, protocol: linear_mgca, by_fraction: {0.1: {data.init_args.batch_size: 4}}, panels: 2}
  zero_shot: {config: zero_shot.yaml, set: {model.init_args.prompts: phantom}}
""",
    "g2d.yaml": """
trainer: {max_epochs: 50, callbacks: [{class_path: lightning.pytorch.callbacks.RichProgressBar}]}
model: {class_path: G2D, init_args: {lr: 0.001}}
data: {class_path: MIMICCXRDataModule, init_args: {root: data/mimic}}
""",
    "over.yaml": "model: {init_args: {lr: 0.01}}\ntrainer: {logger: false}",
    "linear.yaml": """
trainer: {max_epochs: 5, default_root_dir: runs/linear}
model: {class_path: Classification, init_args: {protocol: linear}}
data: {class_path: medvlp.datamodules.rsna.RSNADataModule, init_args: {root: data/rsna}}
""",
    "zero_shot.yaml": "model: {class_path: ZeroShotClassification}\ndata: {class_path: RSNADataModule}",
    "mine.ckpt": "checkpoint",
    "some.pth": "weights",
}


def test_jobs_that_an_earlier_version_finished_still_count(tmp_path, monkeypatch):
    """The hashes are those of version 0.2.0: another hash would run every finished grid again."""
    monkeypatch.chdir(tmp_path)
    for name, text in PINNED.items():
        (tmp_path / name).write_text(text)
    assert [job.name for job in _jobs("grid.yaml")] == [
        "g2d.pretrain.p0.fb0d09e910b8",
        "g2d.pretrain.p3.433b2ea59da1",
        "random.linear.0.1.a.181eae054761",
        "random.linear.1.a.3ebbb7c5087d",
        "weights.linear.0.1.a.705061adcff8",
        "weights.linear.1.a.7bd500a0c447",
        "g2d.linear.0.1.a.68019a6a8355",
        "g2d.linear.1.a.4e8795f8d47a",
        "mine.zero_shot.a.b12819d2caff",
        "g2d.zero_shot.a.da29a7d25ac7",
        "random.linear.0.1.b.b88372f57d37",
        "weights.linear.0.1.b.147aba4a552d",
        "g2d.linear.0.1.b.490dbc52d692",
        "random.linear.0.1.c.92a386f0e6a7",
        "random.linear.1.c.eb04df760ec3",
        "weights.linear.0.1.c.168c85819a06",
        "weights.linear.1.c.70e47386d215",
        "g2d.linear.0.1.c.6a9454bfbe6c",
        "g2d.linear.1.c.b53ec441e032",
        "g2d.zero_shot.c.fc87d0c67901",
    ]


def test_a_run_may_leave_fractions_out(tiny_grid):
    runs = [{"name": "a"}, {"name": "b", "data": 1, "head": 1, "fractions": [0.5]}]
    jobs = _jobs(tiny_grid(runs=runs))
    assert {(j.run, j.fraction) for j in jobs if j.task == "linear_rsna"} == {("a", 0.5), ("a", 1.0), ("b", 0.5)}
    assert {j.run for j in jobs if j.task == "segmentation_siim"} == {"a"}


def test_panels_change_no_number_and_no_hash(tiny_grid):
    path = tiny_grid()
    before = [job.hash for job in _jobs(path)]
    tasks = yaml.safe_load(path.read_text())["tasks"]
    tasks["zero_shot_rsna"]["panels"] = tasks["segmentation_siim"]["panels"] = 7
    jobs = _jobs(_changed(path, tasks=tasks))
    assert [job.hash for job in jobs] == before
    assert {(j.task, j.run) for j in jobs if j.panels} == {
        ("segmentation_siim", "p0d0h0"),
        ("zero_shot_rsna", "p0d0h0"),
    }


def test_a_checkpoint_counts_by_its_content(tiny_grid, tmp_path):
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"one")
    before = [job.hash for job in _jobs(tiny_grid(methods={"mine": {"checkpoint": str(file)}}))]
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(b"one")
    path = tiny_grid(methods={"mine": {"checkpoint": str(moved)}})
    assert [job.hash for job in _jobs(path)] == before
    moved.write_bytes(b"two")
    assert not {job.hash for job in _jobs(path)} & set(before)


def test_two_methods_may_share_a_pre_training(tiny_grid, tmp_path):
    tiny_grid()
    shared = {"pretrain": str(tmp_path / "g2d.yaml")}
    transfer = {"segmentation_siim": {"model.init_args.transfer_decoder": True}}
    methods = {
        "encoder": shared,
        "decoder": {**shared, "tasks": ["segmentation_siim"], "task_set": transfer},
    }
    jobs = _jobs(tiny_grid(methods=methods))
    assert sum(job.kind == "pretrain" for job in jobs) == 1
    assert {j.task for j in jobs if j.method == "decoder"} == {"segmentation_siim"}


WRONG = {
    "an unknown task class": (
        {"tasks": {"t": {"config": "g2d.yaml"}}},
        ["g2d.yaml", "G2D is no task", "Classification"],
    ),
    "an unknown protocol": (
        {"tasks": {"t": {"config": "linear.yaml", "protocol": "mine"}}},
        ["'t'", "no protocol 'mine'", "linear_mgca"],
    ),
    "an unknown method": (
        {"methods": {"m": {"pretrain": "linear.yaml"}}},
        ["linear.yaml", "no registered method", "G2D"],
    ),
    "no such config": ({"methods": {"m": {"pretrain": "nowhere.yaml"}}}, ["nowhere.yaml", "no such file"]),
    "no such checkpoint": ({"methods": {"m": {"checkpoint": "nowhere.ckpt"}}}, ["'m'", "nowhere.ckpt"]),
    "a checkpoint to download": (
        {"methods": {"m": {"checkpoint": "https://example.org/m.ckpt"}}},
        ["'m'", "https://example.org/m.ckpt: is a URL; download it first"],
    ),
    "weights to download": (
        {"methods": {"m": {"encoder": {"image": {"name": "resnet18", "weights": "s3://there/m.pth"}}}}},
        ["'m'", "s3://there/m.pth: is a URL; download it first"],
    ),
    "a method of nothing": ({"methods": {"m": {"title": "M"}}}, ["'m'", "pretrain, checkpoint, encoder"]),
    "a method of two things": (
        {"methods": {"m": {"checkpoint": "a", "pretrain": "b"}}},
        ["'m'", "pretrain and checkpoint"],
    ),
    "a task that a method names wrongly": (
        {"methods": {"m": {"pretrain": "g2d.yaml", "tasks": ["linear_rsnaa"]}}},
        ["'m'", "linear_rsnaa", "linear_rsna"],
    ),
    "an unknown key": ({"metods": {}}, ["metods"]),
    "an unknown key of a method": ({"methods": {"m": {"pretrain": "g2d.yaml", "colour": 1}}}, ["colour"]),
    "a fraction above one": ({"fractions": [10]}, ["fractions", "10"]),
    "settings for a fraction that is not run": (
        {"tasks": {"t": {"config": "linear.yaml", "by_fraction": {0.3: {"trainer.max_epochs": 1}}}}},
        ["'t'", "0.3", "0.5"],
    ),
    "a run at a fraction that is not run": ({"runs": [{"fractions": [0.3]}]}, ["runs", "0.3", "0.5"]),
    "the same run twice": ({"runs": [{"pretrain": 0}, {"pretrain": 0}]}, ["p0d0h0", "twice"]),
    "the same method under two names": (
        {"methods": {"one": {"pretrain": "g2d.yaml"}, "two": {"pretrain": "g2d.yaml"}}},
        ["one", "two", "same job"],
    ),
    "null where a list is wanted": ({"fractions": "<null>"}, ["fractions is null", "leave it out"]),
    "null in a list": ({"fractions": [0.5, "<null>"]}, ["fractions", "None"]),
    "null for a mapping of a method": (
        {"methods": {"m": {"pretrain": "g2d.yaml", "set": "<null>"}}},
        ["methods m: set is null"],
    ),
    "a mapping that is a list": ({"tasks": [1]}, ["tasks"]),
    "a key that is a number": ({"task_set": {5: 1}}, ["task_set", "5 is not a string"]),
    "a number of four hundred digits": ({"watts": 10**400}, ["watts", "too many digits"]),
    "an encoder that is none": ({"methods": {"m": {"encoder": {"image": 5}}}}, ["'m'", "image must be a mapping"]),
    "a key of by_fraction that is no fraction": (
        {"tasks": {"t": {"config": "linear.yaml", "by_fraction": {"half": {}}}}},
        ["'t'", "by_fraction"],
    ),
    "a limit of no time": ({"timeout_min": 0}, ["timeout_min is 0", "above 0"]),
    "no task": ({"tasks": {}}, ["at least one"]),
    "a name that is no folder": ({"name": "../up"}, ["../up", "letters"]),
}


@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tiny_grid, tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    path = _changed(tiny_grid(), **changes)
    path.write_text(path.read_text().replace("<null>", "null"))
    with pytest.raises(ConfigError) as caught:
        _jobs(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_twice_is_no_silent_loss(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("name: x\nmethods:\n  a: {checkpoint: a}\n  a: {checkpoint: b}\ntasks: {}\n")
    with pytest.raises(ConfigError, match=r"grid.yaml, line 4: 'a' is given twice"):
        read_grid(path)


def test_overlays_merge_as_on_the_command_line():
    below = {"model": {"class_path": "A", "init_args": {"x": 1, "y": [1, 2]}}, "seed": 1}
    assert merged(below, {"model": {"init_args": {"y": [3]}}})["model"]["init_args"] == {"x": 1, "y": [3]}
    same = merged(below, {"model": {"class_path": "package.A", "init_args": {"z": 1}}})
    assert same["model"]["init_args"] == {"x": 1, "y": [1, 2], "z": 1}
    with pytest.raises(ConfigError, match=r"replaces A by B.*--print_config"):
        merged(below, {"model": {"class_path": "package.B"}})
    assert below["model"]["init_args"]["y"] == [1, 2]
    with pytest.raises(ConfigError, match=r"seed\.deep: seed is not a group"):
        with_settings(below, {"seed.deep": 1})


def test_defaults():
    grid = Grid(name="g", methods={}, tasks={})
    assert grid.folder.parts[-3:] == ("runs", "benchmark", "g")
