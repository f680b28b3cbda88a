"""What a method's checkpoint holds beside the weights, and the checks before a model is built from it.

The schema of the hyper-parameters is the method's own signature. Nothing that names a file, a hub or a class gets
through: weights come from the checkpoint alone.
"""

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from medvlp.compat import TorchDispatchMode, tree_leaves
from medvlp.encoders.image import without_image_sources
from medvlp.encoders.text import without_text_sources
from medvlp.errors import CheckpointError
from medvlp.prompts import PromptSet, available
from medvlp.text import tokenizer_state
from medvlp.training.schema import CHECKPOINT_KEY, conform, mapping
from medvlp.training.settings import plain

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule


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


def payload_of(model: "PretrainModule") -> dict[str, Any]:
    """Return the entries of :class:`Payload` for a model, but for the version.

    Raises:
        CheckpointError: no tokenizer yet, or a hyper-parameter that is no plain value.
    """
    if model.has_text and model.tokenizer is None:
        raise CheckpointError("a checkpoint needs the tokenizer: fit with a medvlp datamodule, or attach one")
    return {
        "method": model.name,
        "hyperparameters": hyperparameters_of(model),
        "tokenizer": tokenizer_state(model.tokenizer) if model.has_text else None,
        "preprocess": plain(model.preprocess),
        "label_names": list(model.label_names),
        "prompts": plain(model.prompts),
    }


def hyperparameters_of(model: "PretrainModule") -> dict[str, Any]:
    """Return the ``__init__`` arguments as plain values, with encoders that build without hub or files."""
    accepted = arguments(type(model))
    values = {key: plain(value) for key, value in model.hparams.items() if key in accepted}
    values["image"] = plain(without_image_sources(model.image_config))
    if model.has_text:
        config = dataclasses.replace(model.text_config, architecture=model.text_encoder.architecture)
        values["text"] = plain(without_text_sources(config))
    if values.get("prompts") not in available():  # a local file; the checkpoint holds its content
        values["prompts"] = None
    return {key: value for key, value in values.items() if key in accepted}


def read_payload(checkpoint: Mapping[str, Any]) -> Payload:
    """Return the checked payload of a method's checkpoint; raise a CheckpointError if an entry does not fit."""
    stored = mapping(checkpoint.get(CHECKPOINT_KEY), CHECKPOINT_KEY)
    names = {field.name for field in dataclasses.fields(Payload)}
    payload: Payload = conform({key: value for key, value in stored.items() if key in names}, Payload, CHECKPOINT_KEY)
    size, kind = payload.preprocess.get("size", 1), payload.preprocess.get("transform", "")
    if type(size) is not int or not 1 <= size <= 1 << 14 or not isinstance(kind, str):
        raise CheckpointError(f"{CHECKPOINT_KEY}.preprocess: transform {kind!r} and size {size!r} are not usable")
    return payload


def arguments(kind: type) -> dict[str, Any]:
    """Return names and types of the arguments of a class, including those that it passes on as ``**options``."""
    accepted: dict[str, Any] = {}
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
                accepted.setdefault(p.name, hints.get(p.name, Any))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return accepted


def checked_hyperparameters(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored arguments for a method's class, of the types that it declares, with encoders without weights.

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


class Bounded(TorchDispatchMode):
    """Refuses to build a network that is far larger than the weights it is built for.

    The bounds are wide, since layers may be built and dropped (``depth``, ``keep_layers``).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors = 64 * len(weights) + 20_000
        self.numbers = 32 * sum(value.untyped_storage().nbytes() // 4 for value in weights.values()) + 2**28

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count tensors that are created from sizes alone."""
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            numbers = [arg for arg in args if isinstance(arg, int | float) and math.isfinite(arg)]
            sizes = [math.prod(arg) for arg in args if isinstance(arg, list | tuple)]
            self.tensors -= 1
            self.numbers -= abs(int(sizes[0] if sizes else max(numbers, default=0)))
            if min(self.tensors, self.numbers) < 0:
                raise CheckpointError("its settings describe a network that is far larger than its weights")
        return func(*args, **(kwargs or {}))
