"""Hyper-parameters: ranges, and conversion to plain values that load with ``weights_only=True``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlp.errors import CheckpointError, check_range


def config_from(kind: type, value: Any) -> Any:
    """Return a config dataclass from an instance, a dictionary, or None (the defaults)."""
    return kind(**(value or {})) if value is None or isinstance(value, dict) else value


_RANGES = {
    "[1, 65536]": ("embed_dim", "head_dim", "decoder_dim", "decoder_widths", "decoder_depth", "num_prototypes"),
    "[1, 1024]": ("heads", "decoder_heads", "group", "num_classes"),
    "(0, inf)": (
        *("temperature", "token_temperature", "prototype_temperature", "grounding_temperature", "lrs", "width"),
        *("temp1", "temp2", "temp3", "tau1", "tau2"),
    ),
    "[0, inf)": (
        *("lambda_image", "text_to_image", "pixel_loss_start", "freeze_prototypes", "sigma", "figures", "resamples"),
        *("global_weight", "local_weight", "instance_weight", "token_weight", "prototype_weight"),
    ),
    "[1, inf)": ("views", "per_class", "recalls", "precisions", "max_candidates", "max_detections"),
    "[0, 1]": ("dropout", "balance", "mask_ratio"),
}


def check_named(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError for an argument of a method or task outside the interval of its name."""
    for interval, names in _RANGES.items():
        check_range(interval, **{name: settings.get(name) for name in names})


def plain(value: Any) -> Any:
    """Return a value as plain dictionaries, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise CheckpointError(f"a hyper-parameter of type {type(value).__name__} cannot be stored; use plain values")
