"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest
from command_line import CommandLine

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser):
    """Options of ``tests/fuzz``."""
    group = parser.getgroup("fuzz")
    group.addoption("--mutations", type=int, default=300, help="mutated files in all (default: %(default)s)")
    group.addoption("--mutation", default="", metavar="KIND-SEED", help="only this one, as a failing test names it")


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """The ``medvlp`` command in processes of its own; see ``support/command_line.py``."""
    runner = CommandLine(tmp_path_factory.mktemp("commands"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory) -> Path:
    """60 studies of 64 pixels in MIMIC-CXR layout, made once; tests that break something copy it first."""
    from medvlp.phantom import PhantomSpec, write_phantom

    root = tmp_path_factory.mktemp("tiny_phantom") / "mimic"
    return write_phantom("mimic_cxr", root, PhantomSpec(studies=60, size=64, laterals=0.0, split=(0.6, 0.3, 0.1)))
