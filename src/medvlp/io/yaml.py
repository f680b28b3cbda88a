"""YAML of configs and grids as plain values: each key once, errors with file and line."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from medvlp.errors import ConfigError


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and in which dates are text, as jsonargparse reads them."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen: set = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            continue  # PyYAML's own error follows
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_yaml(text: str, where: str | Path = "YAML") -> Any:
    """Parse YAML into plain values.

    Args:
        text: the document.
        where: what errors call it.

    Raises:
        ConfigError: it is not YAML, a key stands twice in it, or it is nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date or a number that is none
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split()) or "not YAML"
        raise ConfigError(f"{where}, line {mark.line + 1}: {problem}" if mark else f"{where}: {problem}") from error


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file as plain values.

    Raises:
        ConfigError: no such file, it is not UTF-8 or not YAML, or a key stands twice in it.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such file (paths are relative to the working folder, {Path.cwd().name}/)")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    return parse_yaml(text, path)
