import importlib.metadata
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pytest

from medvlp import registry
from medvlp.errors import ConfigError

MODULE = """
from torch import nn

from medvlp.methods.base import PretrainModule


class Outside(PretrainModule):
    name = "outside"

    def __init__(self, image=None, text=None, optim=None, image_size=224, prompts=None, embed_dim=8):
        super().__init__(image=image, text=text, optim=optim, image_size=image_size, prompts=prompts)
        self.image_head = nn.Linear(self.image_encoder.out_channels, embed_dim)
        self.text_head = nn.Linear(self.text_encoder.width, embed_dim)

    def encode_images(self, images):
        return self.image_head(self.image_encoder(images)[-1].mean((2, 3)))

    def encode_tokens(self, input_ids, attention_mask):
        return self.text_head(self.text_encoder(input_ids, attention_mask)[1])

    def forward(self, batch):
        return {
            "image": self.encode_images(batch["image"]),
            "text": self.encode_tokens(batch["input_ids"], batch["attention_mask"]),
        }

    def losses(self, batch, outputs=None):
        out = self(batch) if outputs is None else outputs
        return {"contrast": self.contrast(out["image"], out["text"], temperature=0.1)}
"""

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "outside-method"
version = "0.1"

[project.entry-points."medvlp.methods"]
outside = "outside_method:Outside"

[tool.setuptools]
py-modules = ["outside_method"]
"""


def python(*arguments, path):
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.skipif(
    find_spec("setuptools") is None or find_spec("pip") is None, reason="needs pip and setuptools to build a package"
)
def test_an_outside_package_is_found(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "outside_method.py").write_text(MODULE)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    installed = python("-m", "pip", "install", *options, "--target", str(target), str(source), path="")
    assert installed.returncode == 0, installed.stderr

    listed = python("-m", "medvlp", "list", "methods", path=target)
    assert listed.returncode == 0, listed.stderr
    (row,) = [line for line in listed.stdout.splitlines() if "outside" in line]
    assert "outside_method:Outside" in row
    assert "outside-method" in row
    assert "g2d" in listed.stdout
    assert "outside" not in python("-m", "medvlp", "list", "methods", path="").stdout

    script = textwrap.dedent(
        """
        from medvlp.encoders.image import ImageEncoderConfig
        from medvlp.encoders.text import TextEncoderConfig
        from medvlp.registry import get_method

        kind = get_method("outside")
        text = TextEncoderConfig(hidden_size=32, num_layers=1, num_heads=2, vocab_size=50)
        model = kind(image=ImageEncoderConfig("test_resnet", depth=2), text=text, image_size=32)
        print(kind.name, model.hyperparameters()["embed_dim"])
        """
    )
    used = python("-c", script, path=target)
    assert used.returncode == 0, used.stderr
    assert used.stdout.split() == ["outside", "8"]


def pretend(monkeypatch, *entries):
    made = [importlib.metadata.EntryPoint(name, value, registry.GROUP) for name, value in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: made)


def test_built_in_methods():
    found = {entry.name: entry for entry in registry.methods()}
    assert {"g2d", "convirt", "template"} <= set(found)
    assert found["g2d"].dist.name == "medvlp"
    for name in ("g2d", "convirt", "template"):
        assert registry.get_method(name).name == name


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="g2d"):
        registry.get_method("g2dd")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("medvlp.methods.g2d.module:G2D", "calls itself 'g2d'"),
        ("medvlp.methods.g2d.module:Variant", "not a PretrainModule"),
        ("medvlp.training.optim:OptimConfig", "not a PretrainModule"),
        ("medvlp.methods.g2d.module:Absent", "cannot be imported"),
        ("no_such_package.module:Class", "cannot be imported"),
    ],
)
def test_entry_points_that_lead_nowhere(monkeypatch, target, message):
    pretend(monkeypatch, ("mine", target))
    assert [entry.name for entry in registry.methods()] == ["mine"]  # listing imports nothing
    with pytest.raises(ConfigError, match=message):
        registry.get_method("mine")


def test_two_packages_of_one_name(monkeypatch):
    pretend(monkeypatch, ("g2d", "a:A"), ("g2d", "a:A"))
    assert len(registry.methods()) == 1
    pretend(monkeypatch, ("g2d", "a:A"), ("g2d", "b:B"))
    with pytest.raises(ConfigError, match="two packages"):
        registry.methods()
