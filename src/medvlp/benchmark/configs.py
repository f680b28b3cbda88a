"""Assemble a run's config from files, overlays and dotted settings."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from medvlp.errors import ConfigError
from medvlp.io.yaml import read_yaml

_PROGRESS_BARS = ("RichProgressBar", "TQDMProgressBar")
_IRRELEVANT = (
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "model.init_args.features_dir",
    # of these files the content is hashed, beside the config
    "model.init_args.encoder.checkpoint",
    "model.init_args.encoder.image.weights",
)
"""Settings that no number depends on."""


def merged(below: Any, above: Any) -> Any:
    """Return ``above`` over ``below``: mappings key by key, everything else replaced, as configs on the command line.

    To change a class is an error: the command line would keep the arguments that happen to fit, and nobody would notice
    them in a table's numbers.
    """
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return copy.deepcopy(above)
    result = dict(below)
    classes = [str(part["class_path"]).rpartition(".")[2] for part in (below, above) if "class_path" in part]
    if len(set(classes)) > 1:
        raise ConfigError(
            f"an overlay replaces {classes[0]} by {classes[1]}, whose arguments differ; name a complete config instead "
            "(write it with medvlp fit --config A --config B --print_config)"
        )
    for key, value in above.items():
        result[key] = merged(result[key], value) if key in result else copy.deepcopy(value)
    return result


def with_settings(config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with dotted settings, such as ``{"trainer.max_epochs": 3}``."""
    result = copy.deepcopy(config)
    for name, value in settings.items():
        *path, last = str(name).split(".")
        group = result
        for key in path:
            group = group.setdefault(key, {})
            if not isinstance(group, dict):
                raise ConfigError(f"setting {name}: {key} is not a group of settings")
        group[last] = copy.deepcopy(value)
    return result


def assemble(files: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return config files, each over the one before, then settings; without progress bars, since jobs write logs."""
    config: dict[str, Any] = {}
    for file in files:
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: a config is a mapping with trainer, model and data")
        config = merged(config, content)
    config = with_settings(config, settings)
    _check_groups(config, ", ".join(files))
    trainer = config.setdefault("trainer", {})
    callbacks = trainer.get("callbacks") or []
    trainer["callbacks"] = [c for c in callbacks if not str(c.get("class_path", "")).endswith(_PROGRESS_BARS)]
    trainer["enable_progress_bar"] = False
    trainer["enable_model_summary"] = False
    return config


def _check_groups(config: Mapping[str, Any], where: str) -> None:
    groups = [("trainer", config), ("model", config), ("data", config)]
    groups += [("init_args", config[name]) for name in ("model", "data") if isinstance(config.get(name), Mapping)]
    for name, parent in groups:
        if not isinstance(parent.get(name, {}), Mapping):
            raise ConfigError(f"{where}: {name} is {parent[name]!r}, not a group of settings")
    callbacks = config.get("trainer", {}).get("callbacks") or []
    if not isinstance(callbacks, list) or not all(isinstance(callback, Mapping) for callback in callbacks):
        raise ConfigError(f"{where}: trainer.callbacks is not a list of class_path and init_args")


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that numbers depend on, which is hashed."""
    result = copy.deepcopy(dict(config))
    for name in _IRRELEVANT:
        *path, last = name.split(".")
        group: Any = result
        for key in path:
            group = group.get(key, {}) if isinstance(group, dict) else {}
        if isinstance(group, dict):
            group.pop(last, None)
    return result
