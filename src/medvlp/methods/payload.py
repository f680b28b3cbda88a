"""What a checkpoint may say: its entries are checked against a schema before anything is built from them.

The schema of the hyper-parameters is the method's own signature. Nothing that names a file, a hub or a class gets
through: weights come from the checkpoint alone.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Union

from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medvlp.encoders.image import ImageEncoderConfig, without_image_sources
from medvlp.encoders.text import TextEncoderConfig, without_text_sources
from medvlp.errors import CheckpointError, ConfigError, MedVLPError
from medvlp.prompts import PromptSet, available

CHECKPOINT_KEY = "medvlp"
"""Where a checkpoint keeps what :func:`medvlp.load` needs beside the weights."""


@dataclasses.dataclass(frozen=True)
class Payload:
    """What a method writes beside its weights.

    Args:
        method: its registered name.
        version: of medvlp.
        hyperparameters: arguments of its class.
        tokenizer: see :func:`medvlp.text.tokenizer_state`; None without a text side.
        preprocess: transform, size and intensity of the images.
        label_names: columns of the training labels.
        prompts: the prompt set that it was validated with.
    """

    method: str
    version: str
    hyperparameters: dict[str, Any]
    tokenizer: dict[str, Any] | None
    preprocess: dict[str, Any]
    label_names: list[str]
    prompts: PromptSet | None = None


@contextmanager
def restoring(where: str) -> Iterator[None]:
    """Turns whatever is raised on a damaged checkpoint into one line that names it.

    Args:
        where: the file, with a colon, or nothing.

    Raises:
        CheckpointError: in the place of any other error.
    """
    try:
        yield
    except MedVLPError as error:
        raise CheckpointError(f"{where}{' '.join(str(error).split())}") from error  # names in it may hold anything
    except Exception as error:  # libraries and methods may raise anything on values that are not their own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{where}damaged, or written by another version of medvlp ({type(error).__name__}: {reason})"
        ) from error


def read_payload(checkpoint: Mapping[str, Any]) -> Payload:
    """The payload of a method's checkpoint.

    Raises:
        CheckpointError: an entry is missing or of another type.
    """
    stored = mapping(checkpoint.get(CHECKPOINT_KEY), CHECKPOINT_KEY)
    names = {field.name for field in dataclasses.fields(Payload)}
    payload: Payload = conform({key: value for key, value in stored.items() if key in names}, Payload, CHECKPOINT_KEY)
    size, kind = payload.preprocess.get("size", 1), payload.preprocess.get("transform", "")
    if type(size) is not int or not 1 <= size <= 1 << 14 or not isinstance(kind, str):
        raise CheckpointError(f"{CHECKPOINT_KEY}.preprocess: transform {kind!r} and size {size!r} are not usable")
    return payload


def read_task_payload(checkpoint: Mapping[str, Any], task: str) -> str:
    """The SHA-256 of the encoder that a task's head in a checkpoint was trained on.

    Args:
        checkpoint: of a task.
        task: name of its class.

    Raises:
        CheckpointError: an entry is missing or of another type, or the checkpoint is not of this task.
    """
    stored = mapping(checkpoint.get(CHECKPOINT_KEY, {}), CHECKPOINT_KEY)
    if stored.get("task") != task:
        kind = stored.get("task") or f"method {stored.get('method')!r}"
        raise CheckpointError(
            f"the checkpoint is of {kind}, not of {task}; a method's checkpoint goes into "
            "model.init_args.encoder.checkpoint"
        )
    return conform(stored.get("encoder_sha256"), str, f"{CHECKPOINT_KEY}.encoder_sha256")


def read_training_state(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of optimisers and schedules whose states a checkpoint holds.

    Raises:
        CheckpointError: an entry that training needs to go on is missing or of another type; Lightning would start
            again from zero without some of them.
    """
    expected = {"epoch": int, "global_step": int, "optimizer_states": list, "lr_schedulers": list, "loops": dict}
    for name, kind in expected.items():
        if name not in checkpoint:
            raise CheckpointError(f"training cannot go on from it: it has no entry {name!r}")
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
    """Raises unless the state that an optimiser was given fits its weights.

    Raises:
        CheckpointError: a setting that is no number, or moments of another shape or NaN.
    """
    for group in optimizer.param_groups:
        for name, own in optimizer.defaults.items():
            kind = {int: float, float: float, tuple: tuple[float, ...]}.get(type(own), object)
            conform(group.get(name), kind, f"optimizer_states: {name}")
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and (value.shape != weight.shape or value.isnan().any()):
                shapes = f"{tuple(value.shape)}, its weight {tuple(weight.shape)}"
                raise CheckpointError(f"optimizer_states: {name} holds NaN or has another shape: {shapes}")


def arguments(kind: type) -> dict[str, Any]:
    """Names and types of the arguments that a class takes, those that it passes on as ``**options`` included."""
    found: dict[str, Any] = {}
    for level in kind.__mro__:
        if "__init__" not in vars(level):
            continue
        init = vars(level)["__init__"]
        parameters = inspect.signature(init).parameters.values()
        try:
            hints = typing.get_type_hints(init)
        except NameError:  # names that a third-party module imports for its type checker alone
            hints = {}
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self":
                found.setdefault(p.name, hints.get(p.name, Any))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def checked_hyperparameters(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a method's class, each of the type that it declares, with encoders that take no weights.

    Args:
        kind: the class.
        values: as stored.

    Raises:
        CheckpointError: unknown arguments, other types, or an encoder that is not one of this library's.
    """
    accepted = arguments(kind)
    if unknown := [name for name in values if name not in accepted]:
        raise CheckpointError(f"unknown hyper-parameter {unknown[0]!r}; expected one of: {', '.join(accepted)}")
    checked = {name: conform(value, accepted[name], name) for name, value in values.items()}
    if "prompts" in accepted and checked.get("prompts") not in available():
        checked["prompts"] = None  # the payload holds the content of a user's own file
    return checked


_SCALARS = (type(None), bool, int, float, str, dict, list, tuple)


def conform(value: Any, kind: Any, where: str) -> Any:
    """A stored value as the type that stands for it: dictionaries become dataclasses, lists tuples.

    Args:
        value: plain.
        kind: a type annotation.
        where: for messages.

    Raises:
        CheckpointError: the value is of another type.
    """
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


def _one_of(value: Any, options: tuple, kind: Any, where: str) -> Any:
    for option in options:
        try:
            return conform(value, option, where)
        except CheckpointError:
            if isinstance(value, dict) and dataclasses.is_dataclass(option):
                raise  # says which of its fields
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
        made = kind(**{name: conform(item, hints[name], f"{where}.{name}") for name, item in stored.items()})
        if isinstance(made, ImageEncoderConfig):
            return without_image_sources(made)
        return without_text_sources(made) if isinstance(made, TextEncoderConfig) else made
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def mapping(value: Any, where: str) -> dict[str, Any]:
    """The value if it is a dictionary with names as keys.

    Raises:
        CheckpointError: it is not.
    """
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
    """The weights of a checkpoint.

    Raises:
        CheckpointError: no dictionary of tensors by name.
    """
    weights = mapping(checkpoint.get(key), key)
    if wrong := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{key}.{wrong[0]} is a {type(weights[wrong[0]]).__name__}; expected a tensor")
    return weights


class Bounded(TorchDispatchMode):
    """Raises before a network is built that is far larger than the weights it is built for.

    Layers may be built and dropped (``depth``, ``keep_layers``), so the bounds are wide.

    Args:
        weights: of the checkpoint.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = 64 * len(weights) + 20_000
        self.numbers = 32 * sum(value.untyped_storage().nbytes() // 4 for value in weights.values()) + 2**28

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Counts what is made of nothing but sizes."""
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            numbers = [arg for arg in args if isinstance(arg, int | float) and math.isfinite(arg)]
            sizes = [math.prod(arg) for arg in args if isinstance(arg, list | tuple)]
            self.tensors -= 1
            self.numbers -= abs(int(sizes[0] if sizes else max(numbers, default=0)))
            if min(self.tensors, self.numbers) < 0:
                raise CheckpointError("its settings describe a network that is far larger than its weights")
        return func(*args, **(kwargs or {}))
