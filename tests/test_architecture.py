"""The rooms of docs/architecture.md, held to their word."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "src" / "medvlp").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")])


def _imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _attributes(path: Path) -> set[str]:
    """Dotted names that a file spells out, such as ``torch.distributed.init_process_group``."""
    return {
        ast.unparse(n) for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)
    }


def test_import_contracts():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medvlp_baselines" in (ROOT / "pyproject.toml").read_text()
    assert " 0 broken" in done.stdout


def test_contracts_would_notice():
    """The analysis sees both packages, and imports inside functions."""
    graph = grimp.build_graph("medvlp", "medvlp_baselines", include_external_packages=True, cache_dir=None)
    assert "medvlp.losses.contrastive" in graph.find_modules_directly_imported_by("medvlp.methods.base")
    assert "medvlp.methods.base" in graph.find_modules_directly_imported_by("medvlp_baselines.convirt.module")
    assert "medvlp.running" in graph.find_modules_directly_imported_by("medvlp.cli")
    assert "torch" in graph.find_modules_directly_imported_by("medvlp.distributed")


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_only_one_module_knows_torch_distributed(path):
    if path == ROOT / "src" / "medvlp" / "distributed.py":
        assert "torch.distributed" in _imported(path)
        return
    found = _imported(path) | _attributes(path)
    assert not [name for name in found if name.startswith(("torch.distributed", "torch.nn.parallel"))]


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_no_unsafe_loading(path):
    """Nothing unpickles, every torch.load is restricted to plain weights, and no hub's or folder's code is trusted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name for name in _imported(path) if name.split(".")[0] in ("pickle", "dill", "joblib", "marshal")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True"
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("from_pretrained", "from_config"):
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("trust_remote_code") == "False"


def test_every_package_is_shipped():
    """setup.cfg lists the packages by hand; each folder with an __init__.py must be in it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(base).parts) for base in (ROOT / "src",) for path in base.rglob("__init__.py")
    } | {
        ".".join(("medvlp_baselines", *path.parent.relative_to(ROOT / "baselines").parts))
        for path in (ROOT / "baselines").rglob("__init__.py")
    }
    assert listed == found


def _renames(tree: ast.AST) -> list[str]:
    """Calls that rename or replace a file: by ``os`` and ``shutil``, and a path's methods, which take one target."""
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            calls += [alias.name for alias in node.names if alias.name in _RENAMING]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, module = node.func.attr, ast.unparse(node.func.value)
        target = (len(node.args) == 1 and not node.keywords) or [k.arg for k in node.keywords] == ["target"]
        single = target and name in ("replace", "rename")
        if (module in ("os", "shutil") and name in _RENAMING) or (module not in ("os", "dataclasses") and single):
            calls.append(ast.unparse(node))
    return calls


_RENAMING = {"replace", "rename", "renames", "move"}
_MAY_RENAME = {ROOT / "src" / "medvlp" / name for name in ("store.py", "phantom/truth.py")}


def test_only_the_store_renames_files():
    """Everyone else writes files and folders through medvlp.store (the phantom's writer has its own manifest)."""
    found = {path: _renames(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {path for path, calls in found.items() if calls} == _MAY_RENAME, found


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("os.replace(a, b)", 1),
        ("from shutil import move", 1),
        ("part.replace(path)", 1),
        ("part.with_suffix('.a').rename(path)", 1),
        ("'a'.replace('b', 'c')", 0),
        ("frame.rename(columns={})", 0),
        ("dataclasses.replace(row)", 0),
    ],
)
def test_renames_would_be_noticed(code, count):
    assert len(_renames(ast.parse(code))) == count


def _prints(tree: ast.AST) -> list[str]:
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name for name in calls if name in ("print", "sys.stdout.write", "sys.stderr.write")]


def _is_command(path: Path) -> bool:
    """Whether a module belongs to the command line: a tool, the command itself, or the arguments that tools share."""
    functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    return "add_arguments" in functions or path.name in ("cli.py", "arguments.py")


def test_only_commands_print():
    """The library logs; what it shows on a terminal goes through ``console.py``."""
    printing = {path: _prints(ast.parse(path.read_text())) for path in SOURCES if not _is_command(path)}
    assert {path.name: calls for path, calls in printing.items() if calls} == {}
    rich = {"rich.console.Console", "rich.progress.Progress", "rich.progress.track"}
    assert [path.name for path in SOURCES if rich & _runtime_imports(path)] == ["console.py"]


def _runtime_imports(path: Path) -> set[str]:
    """Imports outside ``if TYPE_CHECKING``."""
    tree = ast.parse(path.read_text())
    kept = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    nodes = [n for top in kept for n in ast.walk(top) if isinstance(n, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
