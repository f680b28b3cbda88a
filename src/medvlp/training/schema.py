"""Validation of untrusted checkpoints: each entry must have its type; files, hubs and classes cannot be named."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union

from torch import Tensor
from torch.optim import Optimizer

from medvlp.encoders.image import ImageEncoderConfig, without_image_sources
from medvlp.encoders.text import TextEncoderConfig, without_text_sources
from medvlp.errors import CheckpointError, ConfigError, MedVLPError

CHECKPOINT_KEY = "medvlp"
"""Key of what :func:`medvlp.load` needs beside the weights."""


@contextmanager
def restoring(where: str) -> Iterator[None]:
    """Re-raise any error as a CheckpointError of one line that starts with ``where``."""
    try:
        yield
    except MedVLPError as error:
        raise CheckpointError(f"{where}{' '.join(str(error).split())}") from error  # it may quote names of the file
    except Exception as error:  # libraries and methods may raise anything on unexpected values
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{where}damaged, or written by another version of medvlp ({type(error).__name__}: {reason})"
        ) from error


def read_training_state(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of optimiser and schedule states in a checkpoint; raise if it cannot be resumed."""
    expected = {"epoch": int, "global_step": int, "optimizer_states": list, "lr_schedulers": list, "loops": dict}
    for name, kind in expected.items():
        if name not in checkpoint:
            raise CheckpointError(f"it cannot be resumed: it has no entry {name!r}")
        if type(checkpoint[name]) is not kind:
            raise _mismatch(checkpoint[name], kind, name)
    fit_loop = mapping(checkpoint["loops"].get("fit_loop"), "loops.fit_loop")
    for name, progress in fit_loop.items():
        if name.endswith("progress"):
            _check_counts(progress, f"loops.fit_loop.{name}")
    return len(checkpoint["optimizer_states"]), len(checkpoint["lr_schedulers"])


def _check_counts(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_counts(item, f"{where}.{key}")
    elif not isinstance(value, int) or value < 0:
        raise _mismatch(value, int, where)


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise a CheckpointError for settings of another type, and moments that are NaN or of another shape."""
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            kind = {int: float, float: float, tuple: tuple[float, ...]}.get(type(default), object)
            conform(group.get(name), kind, f"optimizer_states: {name}")
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and (value.shape != weight.shape or value.isnan().any()):
                shapes = f"{tuple(value.shape)}, its weight {tuple(weight.shape)}"
                raise CheckpointError(f"optimizer_states: {name} holds NaN or has another shape: {shapes}")


_SCALARS = (type(None), bool, int, float, str, dict, list, tuple)


def conform(value: Any, kind: Any, where: str) -> Any:
    """Return the plain value of entry ``where`` as type ``kind``: dictionaries become dataclasses, lists tuples."""
    kind = type(None) if kind is None else kind
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, parts, kind, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(value, kind, where)
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        of = parts if origin is tuple and parts[-1:] != (...,) else parts[:1] * len(value)
        if len(of) == len(value):
            items = [conform(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(zip(value, of, strict=True))]
            return tuple(items) if origin is tuple else items
    if (origin or kind) in (dict, Mapping) and isinstance(value, dict):
        of_key, of_item = parts or (str, Any)
        return {conform(key, of_key, where): conform(item, of_item, f"{where}.{key}") for key, item in value.items()}
    if (
        (kind not in _SCALARS and origin is None and _is_plain(value))  # Any, or a type of a third-party method
        or (origin is Literal and any(type(value) is type(part) and value == part for part in parts))
        or (kind is float and type(value) is int)
        or (kind in _SCALARS and type(value) is kind and _is_plain(value))
    ):
        return value
    raise _mismatch(value, kind, where)


def _one_of(value: Any, options: tuple[Any, ...], kind: Any, where: str) -> Any:
    for option in options:
        try:
            return conform(value, option, where)
        except CheckpointError:
            if isinstance(value, dict) and dataclasses.is_dataclass(option):
                raise  # this error names the field
    raise _mismatch(value, kind, where)


def _mismatch(value: Any, kind: Any, where: str) -> CheckpointError:
    name = "a finite number, a text, a list or a dictionary of them"
    if kind is not Any:
        name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    return CheckpointError(f"{where} is {repr(value)[:60]}; expected {name}")


def _dataclass(value: Any, kind: type, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    stored = mapping(value, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [name for name in stored if name not in fields]:
        raise CheckpointError(f"{where} has an unknown entry {unknown[0]!r}; expected one of: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in stored and field.default is field.default_factory is dataclasses.MISSING:
            raise CheckpointError(f"{where} has no entry {name!r}")
    try:
        config = kind(**{name: conform(item, hints[name], f"{where}.{name}") for name, item in stored.items()})
        if isinstance(config, ImageEncoderConfig):
            return without_image_sources(config)
        return without_text_sources(config) if isinstance(config, TextEncoderConfig) else config
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return ``value``; raise a CheckpointError unless it is a dictionary with names as keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CheckpointError(f"{where} is a {type(value).__name__}; expected a dictionary with names as keys")
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def weights_of(checkpoint: Mapping[str, Any], key: str = "state_dict") -> dict[str, Tensor]:
    """Return the weights of a checkpoint; raise a CheckpointError unless all are tensors."""
    weights = mapping(checkpoint.get(key), key)
    if wrong := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{key}.{wrong[0]} is a {type(weights[wrong[0]]).__name__}; expected a tensor")
    return weights
