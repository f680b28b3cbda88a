"""A run's config from files, overlays and dotted settings, as one plain dictionary."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from medvlp.errors import ConfigError
from medvlp.io.yaml import read_yaml

_QUIET = ("RichProgressBar", "TQDMProgressBar")
_NO_NUMBERS = (
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "model.init_args.features_dir",
    # of these the content counts, which is hashed beside the config
    "model.init_args.encoder.checkpoint",
    "model.init_args.encoder.image.weights",
)
"""Settings on which no number depends."""


def merged(below: Any, above: Any) -> Any:
    """``above`` over ``below``: mappings key by key, everything else replaced, as configs on the command line.

    Raises:
        ConfigError: ``above`` names another class. The command line would keep the arguments that fit by chance; here
            they would be unseen in a table's numbers.
    """
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return copy.deepcopy(above)
    result = dict(below)
    classes = [str(part["class_path"]).rpartition(".")[2] for part in (below, above) if "class_path" in part]
    if len(set(classes)) > 1:
        raise ConfigError(
            f"an overlay makes {classes[1]} of {classes[0]}, whose arguments are of another class; write the whole "
            "config (medvlp fit --config A --config B --print_config) and name that"
        )
    for key, value in above.items():
        result[key] = merged(result[key], value) if key in result else copy.deepcopy(value)
    return result


def with_settings(config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config with dotted settings, such as ``{"trainer.max_epochs": 3}``.

    Raises:
        ConfigError: a setting leads through something that is no mapping.
    """
    result = copy.deepcopy(config)
    for name, value in settings.items():
        *path, last = str(name).split(".")
        at = result
        for key in path:
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                raise ConfigError(f"the setting {name} leads through {key}, which is no group of settings")
        at[last] = copy.deepcopy(value)
    return result


def assemble(files: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Config files, each over the one before, then settings; progress bars are left out, since jobs write logs.

    Raises:
        ConfigError: a file that cannot be read or is no run's config.
    """
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
    trainer["callbacks"] = [c for c in callbacks if not str(c.get("class_path", "")).endswith(_QUIET)]
    trainer["enable_progress_bar"] = False
    trainer["enable_model_summary"] = False
    return config


def _check_groups(config: Mapping[str, Any], where: str) -> None:
    """Refuses groups of settings that are none; what is in them is the command line's to check."""
    groups = [("trainer", config), ("model", config), ("data", config)]
    groups += [("init_args", config[name]) for name in ("model", "data") if isinstance(config.get(name), Mapping)]
    for name, parent in groups:
        if not isinstance(parent.get(name, {}), Mapping):
            raise ConfigError(f"{where}: {name} is {parent[name]!r}, not a group of settings")
    callbacks = config.get("trainer", {}).get("callbacks") or []
    if not isinstance(callbacks, list) or not all(isinstance(callback, Mapping) for callback in callbacks):
        raise ConfigError(f"{where}: trainer.callbacks is no list of class_path and init_args")


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config the numbers depend on: the part that is hashed."""
    result = copy.deepcopy(dict(config))
    for name in _NO_NUMBERS:
        *path, last = name.split(".")
        at: Any = result
        for key in path:
            at = at.get(key, {}) if isinstance(at, dict) else {}
        if isinstance(at, dict):
            at.pop(last, None)
    return result
