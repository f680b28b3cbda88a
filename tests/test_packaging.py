import configparser
import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest

import medvlp

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section, key):
    return [line for line in SETUP[section][key].split("\n") if line.strip() and not line.startswith("#")]


def folders(root, name):
    return {".".join((name, *path.parent.relative_to(root).parts)) for path in root.rglob("__init__.py")}


def test_listed_packages_are_the_folders():
    listed = lines("options", "packages")
    assert len(listed) == len(set(listed))
    found = folders(ROOT / "src" / "medvlp", "medvlp") | folders(ROOT / "baselines", "medvlp_baselines")
    assert set(listed) == found


def test_every_folder_with_code_is_a_package():
    for root in (ROOT / "src" / "medvlp", ROOT / "baselines"):
        for path in root.rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path.relative_to(ROOT)


@pytest.mark.parametrize("section", ["console_scripts", "medvlp.methods"])
def test_entry_points_import(section):
    for line in lines("options.entry_points", section):
        name, target = (part.strip() for part in line.split("="))
        module, attribute = target.split(":")
        found = getattr(importlib.import_module(module), attribute)
        assert callable(found)
        if section == "medvlp.methods":
            assert found.name == name


def test_installed_entry_points_are_the_listed_ones():
    listed = {line.split("=")[0].strip() for line in lines("options.entry_points", "medvlp.methods")}
    installed = importlib.metadata.entry_points(group="medvlp.methods")
    assert {entry.name for entry in installed if entry.dist.name == "medvlp"} == listed


def test_package_data_is_listed():
    """Every file that is no Python under src/medvlp matches a pattern of its package."""
    data = {package: lines("options.package_data", package) for package in SETUP["options.package_data"]}
    assert "py.typed" in data["medvlp"]
    for path in (ROOT / "src" / "medvlp").rglob("*"):
        if path.is_dir() or path.suffix in (".py", ".pyc"):
            continue
        package = ".".join(path.parent.relative_to(ROOT / "src").parts)
        assert any(path.match(pattern) for pattern in data.get(package, [])), path.relative_to(ROOT)


def test_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", medvlp.__version__)
    assert importlib.metadata.version("medvlp") == medvlp.__version__


def test_public_names_import():
    for name in medvlp.__all__:
        assert getattr(medvlp, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        medvlp.nonsense  # noqa: B018
