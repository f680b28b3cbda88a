"""YAML of configs and grids as plain values: no repeated keys, errors with file and line."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from medvlp.errors import ConfigError

_ADDED = 1_000_000  # values and characters that aliases may add to a document; nested ones double it with every line
_DEPTH = 100  # levels that a document may have; writing configs fails at some 200, depending on the caller


class _UniqueKeys(yaml.SafeLoader):
    """YAML without repeated keys and endless aliases; dates are text, as jsonargparse reads them."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        """Override: refuse a document that its aliases make far too long, before anything is built."""
        node = super().get_single_node()
        if node is not None:
            _measured(node, {}, [0])
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Override: refuse a key that is given twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML's own error follows
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Override: a tag that its value does not fit, such as ``!!bool x``, is an error with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a number of too many digits
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            what = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else f"a {node.id}"
            problem = f"{what} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _measured(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]], added: list[int]) -> tuple[int, int]:
    """Size and depth of a node with every alias written out; sums up what those add."""
    if node in known:
        size = known[node][0]
        added[0] += size
        if not size or added[0] > _ADDED:
            problem = "its aliases make it far too long" if size else "an alias inside its own anchor"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return known[node]
    known[node], size, depth = (0, 0), 1, 0
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
    else:
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        for part in (part for pair in pairs for part in pair):
            part_size, part_depth = _measured(part, known, added)
            size, depth = size + part_size, max(depth, part_depth + 1)
    if depth > _DEPTH:
        raise RecursionError
    known[node] = size, depth
    return known[node]


def parse_yaml(text: str, where: str | Path = "YAML") -> Any:
    """Parse YAML into plain values; errors call the document ``where``.

    Raises:
        ConfigError: it is not YAML, repeats a key, is nested too deeply, or its aliases make it too long.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split()) or "not YAML"
        raise ConfigError(f"{where}, line {mark.line + 1}: {problem}" if mark else f"{where}: {problem}") from error


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file as plain values.

    Raises:
        ConfigError: no such file, it is not UTF-8 or not YAML, or repeats a key.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file (paths are relative to the working folder, {Path.cwd().name}/)")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    return parse_yaml(text, path)
