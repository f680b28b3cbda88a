"""The command line as its users meet it: in processes of its own, by exit code and printed text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import environment, tiny_config, write_config
from helpers import mostly_variants
from PIL import Image

import medvlp
from medvlp import registry

HEAVY = ("torch", "lightning", "transformers", "timm", "pandas", "matplotlib", "numpy")


@pytest.fixture(scope="module")
def config(tiny_phantom, tmp_path_factory) -> tuple[Path, Path]:
    """A tiny config, whose own run folder stays empty, and the folder of the run of ``fitted``."""
    folder = tmp_path_factory.mktemp("cli")
    return write_config(folder / "tiny.yaml", tiny_config(tiny_phantom, folder / "unused")), folder / "run"


@pytest.fixture(scope="module")
def fitted(command, config) -> Path:
    """The run's folder, after ``medvlp fit``."""
    path, run = config
    command("fit", "--config", path, "--trainer.default_root_dir", run, "--trainer.limit_train_batches", "2").ok()
    return run


@pytest.fixture
def broken(tiny_phantom, tmp_path) -> Path:
    """A copy of the phantom to damage."""
    return shutil.copytree(tiny_phantom, tmp_path / "broken")


def _listed(root: Path, split: str) -> pd.DataFrame:
    table = pd.read_csv(root / "mimic-cxr-2.0.0-split.csv.gz", dtype=str)
    return table[table["split"] == split].reset_index(drop=True)


def _image(root: Path, row: pd.Series) -> Path:
    subject, study = row["subject_id"], row["study_id"]
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{row['dicom_id']}.jpg"


# ---------------------------------------------------------------- small commands


def test_help_names_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "medvlp", "--help"], capture_output=True, text=True, env=environment(), check=True
    )
    for name in ("fit", "validate", "test", "predict", "list", "phantom"):
        assert name in done.stdout


@pytest.mark.parametrize("argv", [["--help"], ["list", "methods"], ["list", "tasks"], ["--version"]])
def test_light_commands_import_nothing_heavy(argv):
    code = (
        "import sys\n"
        "from medvlp.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"sys.stderr.write(repr([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stderr == "[]"
    assert done.stdout


def test_list():
    def listed(what: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "medvlp", "list", what],
            capture_output=True,
            text=True,
            env=environment(),
            check=True,
        ).stdout

    for entry in registry.methods():
        assert entry.name in listed("methods")
    assert "MIMICCXRDataModule" in listed("datasets")
    assert "zero_shot" in listed("tasks")


def test_phantom(command, tmp_path):
    root = tmp_path / "phantom"
    argv = ["phantom", "--root", root, "--studies", "6", "--size", "32"]
    assert "6 studies in" in command(*argv).ok().out
    assert len(list(root.glob("files/*/*/*/*.jpg"))) >= 6
    assert (root / "phantom.json").is_file()
    command(*argv).ok()  # complete already
    line = command(*argv, "--seed", "1").error()
    assert str(root) in line
    assert "overwrite" in line
    command(*argv, "--seed", "1", "--overwrite").ok()
    assert "chest_xray" in command("phantom", "--root", tmp_path / "x", "--layout", "chest_xray").error()
    assert "studies" in command("phantom", "--root", tmp_path / "x", "--studies", "-1").error()


def test_run_commands_explain_themselves(command):
    shown = command("fit", "--help").ok().out
    assert "--trainer.max_epochs" in shown
    assert "attention heads (Table 5e" in " ".join(command("fit", "--model.help", "G2D").ok().out.split())


# ---------------------------------------------------------------- configs


def test_print_config_with_short_names(command):
    shown = command(
        "fit", "--print_config", "--model", "G2D", "--data", "MIMICCXRDataModule", "--data.root", "somewhere"
    )
    settings = yaml.safe_load(shown.ok().out)
    assert settings["model"]["class_path"] == "medvlp.G2D"
    assert settings["model"]["init_args"]["embed_dim"] == 128
    assert settings["model"]["init_args"]["temperature"] == 0.07
    assert settings["data"]["class_path"] == "medvlp.MIMICCXRDataModule"
    assert settings["data"]["init_args"]["root"] == "somewhere"
    assert settings["trainer"]["use_distributed_sampler"] is False
    assert settings["seed_everything"] == 0


@pytest.mark.parametrize("name", ["ConVIRT", "TemplateMethod"])
def test_every_method_has_a_short_name(command, name):
    settings = yaml.safe_load(command("fit", "--print_config", "--model", name).ok().out)
    assert settings["model"]["class_path"].endswith("." + name)


def test_config_is_saved_with_the_run(fitted, config):
    saved = yaml.safe_load((fitted / "config.yaml").read_text())
    model = saved["model"]["init_args"]
    assert model["embed_dim"] == 16
    # Not in the config file: the method's own defaults.
    assert (model["temperature"], model["decoder_loss"], model["aggregate_heads"]) == (
        0.07,
        "pseudo_segmentation",
        True,
    )
    assert model["text"]["hidden_size"] == 32
    assert saved["trainer"]["limit_train_batches"] == 2
    assert saved["seed_everything"] == 7
    checkpoints = saved["trainer"]["callbacks"][0]["init_args"]["dirpath"]
    assert Path(checkpoints) == fitted / "checkpoints"


def test_the_run_folder_moves_as_a_whole(command, config, tmp_path):
    path, _ = config
    settings = yaml.safe_load(path.read_text())
    settings["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "${trainer.default_root_dir}", "name": "csv"},
    }
    path = write_config(tmp_path / "c.yaml", settings)
    run = tmp_path / "elsewhere"
    command("fit", "--config", path, "--trainer.default_root_dir", run, "--trainer.limit_train_batches", "1").ok()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert list((run / "csv").rglob("metrics.csv"))


# ---------------------------------------------------------------- fit, then evaluate


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_checkpoint_is_evaluated(command, fitted, stage):
    before = (fitted / "config.yaml").read_text()
    # The saved config of a run serves as well as the one that was written by hand.
    for settings in [fitted / "config.yaml"] + [fitted.parent / "tiny.yaml"] * (stage == "validate"):
        done = command(stage, "--config", settings, "--ckpt_path", fitted / "checkpoints" / "last.ckpt").ok()
        if stage != "predict":
            prefix = "val" if stage == "validate" else "test"
            for metric in ("auroc/mean", "recall@1/i2t", "loss"):
                assert f"{prefix}/{metric}" in done.out
    assert (fitted / "config.yaml").read_text() == before, "an evaluation replaced the config of the training"


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_method_with_random_weights_is_not_evaluated(command, fitted, stage):
    line = command(stage, "--config", fitted / "config.yaml").error()
    _says(line, "neither trained nor loaded", f"--ckpt_path {fitted / 'checkpoints' / 'last.ckpt'}")


def test_two_devices_predict_each_row_once(command, fitted, tmp_path):
    made = []
    for devices in (1, 2):
        run = tmp_path / str(devices)
        argv = ["--ckpt_path", fitted / "checkpoints" / "last.ckpt", "--trainer.default_root_dir", run]
        more = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"] if devices > 1 else []
        command("predict", "--config", fitted / "config.yaml", *argv, *more).ok()
        assert [path.name for path in run.glob("*.npz")] == ["embeddings.npz"]
        made.append(np.load(run / "embeddings.npz"))
    assert set(made[0]) == set(made[1]) == {"id", "index", "image", "text"}
    assert len(set(made[0]["id"])) == len(made[0]["id"])
    assert len(made[0]["id"]) % 2 == 1, "an odd number, so that two devices share unequally"
    for key in made[0]:
        if made[0][key].dtype.kind == "f":
            np.testing.assert_allclose(made[1][key], made[0][key], atol=1e-5)
        else:
            assert made[1][key].tolist() == made[0][key].tolist()


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_empty_split_is_an_error(command, fitted, tmp_path, stage):
    settings = yaml.safe_load((fitted / "config.yaml").read_text())
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text("image,text\na.png,clear lungs\n")
    arguments = {"table": str(tmp_path / "pairs.csv"), "val_fraction": 0.0, "image_size": 64, "transform": "phantom"}
    settings["data"] = {"class_path": "PairsDataModule", "init_args": arguments}
    path = write_config(tmp_path / "c.yaml", settings)
    line = command(stage, "--config", path, "--ckpt_path", fitted / "checkpoints" / "last.ckpt").error()
    _says(line, f"nothing to {stage}", "split is empty", "test_fraction")


def test_checkpoint_stands_alone(fitted):
    model = medvlp.load(fitted / "checkpoints" / "last.ckpt")
    assert model.name == "g2d"
    assert model.embed_text(["no pneumothorax"]).shape == (1, 16)
    assert model.preprocess == {"transform": "phantom", "size": 64, "intensity": "standard"}


# ---------------------------------------------------------------- bad input: one line, with the place and the remedy


def _says(line: str, *parts: str | Path) -> None:
    for part in parts:
        assert str(part) in line, line


def test_missing_root(command, config, tmp_path):
    missing = tmp_path / "nowhere"
    line = command("fit", "--config", config[0], "--data.root", missing).error()
    _says(line, missing, "get it from PhysioNet", "medvlp phantom")


def test_table_without_a_column(command, config, broken):
    path = broken / "mimic-cxr-2.0.0-split.csv.gz"
    pd.read_csv(path, dtype=str).drop(columns="split").to_csv(path, index=False)
    _says(command("fit", "--config", config[0], "--data.root", broken).error(), path.name, "split")


def test_pairs_table_without_a_column(command, config, tmp_path):
    table = tmp_path / "pairs.csv"
    pd.DataFrame({"path": ["a.png"], "text": ["clear lungs"]}).to_csv(table, index=False)
    settings = yaml.safe_load(config[0].read_text())
    settings["data"] = {"class_path": "PairsDataModule", "init_args": {"table": str(table)}}
    line = command("fit", "--config", write_config(tmp_path / "c.yaml", settings)).error()
    _says(line, table, "image", "path")


def test_empty_report(command, config, broken):
    row = _listed(broken, "train").iloc[0]
    report = next(broken.glob(f"files/*/*/s{row['study_id']}.txt"))
    report.write_text("")
    line = command("fit", "--config", config[0], "--data.root", broken).error()
    _says(line, "empty report file", f"s{row['study_id']}", "on_error: skip")


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image(command, config, broken, tmp_path, workers):
    row = _listed(broken, "train").iloc[1]
    path = _image(broken, row)
    path.write_bytes(path.read_bytes()[:200])
    argv = ["fit", "--config", config[0], "--data.root", broken, "--trainer.default_root_dir", tmp_path / "run"]
    line = command(*argv, "--data.num_workers", str(workers)).error()
    _says(line, path, row["dicom_id"], "on_error: skip")


def test_tokenizer_folder_without_vocabulary(command, config, tmp_path):
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    tiny = BertConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(tiny).save_pretrained(folder)
    settings = yaml.safe_load(config[0].read_text())
    settings["model"]["init_args"]["text"] = {"pretrained": str(folder), "max_length": 32}
    line = command("fit", "--config", write_config(tmp_path / "c.yaml", settings)).error()
    _says(line, folder, "vocab.txt", "copy it")


def test_text_encoder_that_is_nowhere(command, config, tmp_path):
    settings = yaml.safe_load(config[0].read_text())
    settings["model"]["init_args"]["text"] = {"pretrained": str(tmp_path / "none")}
    line = command("fit", "--config", write_config(tmp_path / "c.yaml", settings)).error()
    _says(line, tmp_path / "none", "text.pretrained", "config.json")


def test_nan_loss(command, config, tmp_path):
    run = tmp_path / "run"
    settings = yaml.safe_load(config[0].read_text())
    settings["model"]["init_args"]["optim"] = {"lr": 1e30, "schedule": "constant"}
    settings["trainer"]["default_root_dir"] = str(run)
    line = command("fit", "--config", write_config(tmp_path / "c.yaml", settings)).error()
    saved = run / "nonfinite_batch_rank0.json"
    _says(line, saved, "lower the learning rate")
    assert len(json.loads(saved.read_text())["ids"]) == 6


def test_unknown_class_names(command, config):
    for option, name in (("--model", "G3D"), ("--data", "Nowhere")):
        done = command("fit", "--config", config[0], option, name)
        assert done.code == 2
        assert name in done.err
        assert "Traceback" not in done.err


def test_unknown_values(command, config):
    for option, value, named in (
        ("--data.transform", "sepia", "g2d_paper"),
        ("--model.prompts", "nothing", "chexpert"),
        ("--model.text.freeze_layers", "5", "freeze_layers"),
        ("--model.image.name", "resnet19", "resnet18"),
    ):
        _says(command("fit", "--config", config[0], option, value).error(), named)
    done = command("fit", "--config", config[0], "--model.embed_dims", "3")
    assert done.code == 2
    assert "embed_dims" in done.err


def test_checkpoint_of_another_method(command, config, fitted, tmp_path):
    settings = yaml.safe_load(config[0].read_text())
    arguments = settings["model"]["init_args"]
    settings["model"] = {
        "class_path": "TemplateMethod",
        "init_args": {key: arguments[key] for key in ("image", "text", "image_size", "prompts", "embed_dim")},
    }
    path = write_config(tmp_path / "c.yaml", settings)
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    for stage in ("validate", "fit"):
        _says(
            command(stage, "--config", path, "--ckpt_path", checkpoint).error(),
            checkpoint,
            "'g2d'",
            "'template'",
            "config.yaml",
        )


def test_checkpoint_that_does_not_fit(command, config, fitted):
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    line = command("validate", "--config", config[0], "--ckpt_path", checkpoint, "--model.embed_dim", "8").error()
    _says(line, checkpoint, "g2d", "size mismatch for projector", "config.yaml")


def test_files_that_are_no_checkpoints(command, config, tmp_path):
    wrong = tmp_path / "wrong.ckpt"
    wrong.write_bytes(b"not a checkpoint")
    _says(command("validate", "--config", config[0], "--ckpt_path", wrong).error(), wrong)
    _says(command("validate", "--config", config[0], "--ckpt_path", tmp_path / "none.ckpt").error(), "none.ckpt")


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("scheme", mostly_variants(["http", "file", "s3", "hf"]))
def test_a_checkpoint_at_a_url_is_never_read(command, config, stage, scheme):
    url = f"{scheme}://127.0.0.1:9/x.ckpt"
    _says(command(stage, "--config", config[0], "--ckpt_path", url).error(), url, "download it first")


@pytest.mark.parametrize("option", ["--model.image.weights", "--model.text.pretrained"])
def test_weights_at_a_url_are_never_read(command, config, option):
    _says(command("fit", "--config", config[0], option, "http://127.0.0.1:9/x").error(), "download it first")


def test_nobody_can_ask_for_checkpoints_that_run_code(command, config):
    done = command("test", "--config", config[0], "--weights_only", "false")
    assert done.code == 2
    assert "weights_only" in done.err


@pytest.mark.parametrize("place", ["file/run", "x" * 300, "/proc/nowhere"])
def test_a_run_folder_that_cannot_be_made(command, config, tmp_path, place):
    (tmp_path / "file").touch()
    _says(command("fit", "--config", config[0], "--trainer.default_root_dir", tmp_path / place).error(), place)


@pytest.mark.parametrize("words", [["phantom", "--root"], ["doctor", "rsna"]])
def test_a_file_in_the_place_of_a_folder(command, tmp_path, words):
    (tmp_path / "file").touch()
    done = command(*words, tmp_path / "file")
    assert done.code != 0
    assert "Traceback" not in done.err


def test_a_full_disk(command, tmp_path):
    line = command("phantom", "--root", tmp_path / "p", "--studies", "4", "--size", "64", largest_file=500).error()
    _says(line, "the disk is full", tmp_path / "p")


def test_a_disk_that_fills_up_in_training(command, config, tmp_path):
    argv = ["fit", "--config", config[0], "--trainer.default_root_dir", tmp_path / "run"]
    _says(command(*argv, largest_file=20_000).error(), "the disk is full", tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "value"),
    mostly_variants(
        [
            *[("model.optim.lr", value) for value in ("0", "-1", ".nan")],
            *[("data.num_workers", "-1"), ("data.batch_size", "0"), ("data.image_size", "0"), ("data.seed", "-1")],
            *[
                ("model.temperature", ".nan"),
                ("model.embed_dim", "0"),
                ("model.heads", "-1"),
                ("model.image.depth", "0"),
            ],
            *[("model.decoder_widths", "[-1000000000, 8, 8]"), ("model.text.hidden_size", "1000000000000")],
            *[("trainer.devices", "-1"), ("trainer.accumulate_grad_batches", "0"), ("trainer.gradient_clip_val", "-1")],
            ("seed_everything", "-1"),
        ],
        4,
    ),
)
def test_numbers_out_of_range(command, config, option, value):
    _says(command("fit", "--config", config[0], f"--{option}", value).error(), option.rpartition(".")[2])


def test_sizes_that_a_library_refuses(command, config):
    line = command("fit", "--config", config[0], "--model.text.hidden_size", "33").error()
    _says(line, "hidden size (33)", "attention heads")


def test_a_trainer_that_is_a_number(command, config, tmp_path):
    overlay = write_config(tmp_path / "c.yaml", {"trainer": 1.5})
    _says(command("fit", "--config", config[0], "--config", overlay).error(), "trainer must be a mapping")


# ---------------------------------------------------------------- on_error: skip


def test_bad_items_are_skipped_and_listed(command, config, broken, tmp_path):
    rows = _listed(broken, "train")
    truncated, missing = rows.iloc[3], rows.iloc[7]
    _image(broken, truncated).write_bytes(b"\xff\xd8\xff")
    _image(broken, missing).unlink()
    empty = rows.iloc[11]
    next(broken.glob(f"files/*/*/s{empty['study_id']}.txt")).write_text("")
    run = tmp_path / "run"
    argv = ["fit", "--config", config[0], "--data.root", broken, "--trainer.default_root_dir", run]
    done = command(*argv, "--data.on_error", "skip", "--data.max_skipped", "0.2", "--trainer.max_epochs", "2").ok()
    listed = pd.read_csv(run / "skipped.csv").set_index("id")["reason"]
    assert listed.index.is_unique
    for row, reason in (
        (truncated, "truncated or broken image"),
        (missing, "missing file"),
        (empty, "empty report file"),
    ):
        assert reason in listed[row["dicom_id"]]
    assert "2 items skipped so far" in done.err
    assert "dropped at indexing" in done.err
    argv += ["--overwrite", "true"]
    line = command(*argv, "--data.on_error", "skip", "--data.max_skipped", "0.02").error()
    _says(line, "max_skipped")


def test_too_many_unreadable_images(command, config, broken, tmp_path):
    for _, row in _listed(broken, "train").iloc[:12].iterrows():
        _image(broken, row).write_bytes(b"\xff\xd8\xff")
    run = tmp_path / "run"
    argv = ["fit", "--config", config[0], "--data.root", broken, "--trainer.default_root_dir", run]
    line = command(*argv, "--data.on_error", "skip").error()
    _says(line, run / "skipped.csv", "0.05", "max_skipped")
    assert len(pd.read_csv(run / "skipped.csv")) >= 3


def test_commands_over_a_corpus_have_one_form(command, tmp_path):
    """``COMMAND DATASET --root DIR``; the former forms work and say once what to write instead."""
    small = ["--studies", "3", "--size", "32"]
    new, old = tmp_path / "new", tmp_path / "old"
    assert "deprecated" not in command("phantom", "rsna", "--root", new, *small).ok().err
    former = command("phantom", "--layout", "rsna", "--root", old, *small).ok()
    assert former.err.count("deprecated; write: medvlp phantom DATASET --root DIR") == 1
    assert (new / "phantom.json").read_bytes() == (old / "phantom.json").read_bytes()
    command("phantom", "--root", tmp_path / "default", *small).ok()
    assert (tmp_path / "default" / "mimic-cxr-2.0.0-metadata.csv.gz").is_file()

    out = ["--out", tmp_path / "out"]
    for name, words, former_words in (
        ("doctor", ["--json"], ["rsna", "--json", new]),
        ("view", [*out, "--count", "2"], ["rsna", *out, new]),
        ("prepare", [*out, "--workers", "1"], ["--data", "rsna", *out, "--root", new]),
    ):
        first = command(name, "rsna", "--root", new, *words).ok()
        second = command(name, *former_words).ok()
        assert "deprecated" not in first.err
        assert second.err.count(f"deprecated; write: medvlp {name} DATASET --root DIR") == 1
        if name == "doctor":
            assert first.out == second.out
        assert "missing; write:" in command(name, "rsna", *(out if name != "doctor" else [])).err


def test_without_a_terminal_each_epoch_is_a_line(command, config, tmp_path):
    argv = ["fit", "--config", config[0], "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", "2"]
    said = command(*argv, "--trainer.limit_train_batches", "2", "--trainer.enable_progress_bar", "true").ok().err
    assert "epoch 1/2: step 2, train/loss" in said
    assert "epoch 2/2: step 4, train/loss" in said
    assert not any(noise in said for noise in ("treespec", "in eval mode", "Tip: For"))
