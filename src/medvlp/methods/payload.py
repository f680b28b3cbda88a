"""Contents of a method's checkpoint beside the weights, validated before a model is built from them.

Hyper-parameters are validated against the method's signature. References to files, hubs or classes are rejected.
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
    """Contents of a method's checkpoint beside its weights."""

    method: str
    version: str
    hyperparameters: dict[str, Any]
    tokenizer: dict[str, Any] | None  # of medvlp.text.tokenizer_state; None for a method without text
    preprocess: dict[str, Any]  # transform, size and intensity of the images
    label_names: list[str]
    prompts: PromptSet | None = None  # used in validation


def payload_of(model: "PretrainModule") -> dict[str, Any]:
    """Return the entries of :class:`Payload` except for the version."""
    if model.has_text and model.tokenizer is None:
        raise CheckpointError("a checkpoint needs the tokenizer: fit with a medvlp data module, or attach one")
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
    """Return the payload of a method's checkpoint; raise a CheckpointError for an entry of the wrong type."""
    stored = mapping(checkpoint.get(CHECKPOINT_KEY), CHECKPOINT_KEY)
    names = {field.name for field in dataclasses.fields(Payload)}
    payload: Payload = conform({key: value for key, value in stored.items() if key in names}, Payload, CHECKPOINT_KEY)
    size, kind = payload.preprocess.get("size", 1), payload.preprocess.get("transform", "")
    if type(size) is not int or not 1 <= size <= 1 << 14 or not isinstance(kind, str):
        raise CheckpointError(f"{CHECKPOINT_KEY}.preprocess: invalid transform {kind!r} or size {size!r}")
    return payload


def arguments(kind: type) -> dict[str, Any]:
    """Return names and types of the arguments of a class, including those that it passes on as ``**options``."""
    accepted: dict[str, Any] = {}
    for init in (vars(level)["__init__"] for level in kind.__mro__ if "__init__" in vars(level)):
        parameters = inspect.signature(init).parameters.values()
        try:
            hints = typing.get_type_hints(init)
        except NameError:  # a third-party module may import names under TYPE_CHECKING
            hints = {}
        for p in parameters:
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self":
                accepted.setdefault(p.name, hints.get(p.name, Any))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return accepted


def checked_hyperparameters(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored arguments of a method's class as the declared types, with encoders without weight sources."""
    accepted = arguments(kind)
    if unknown := [name for name in values if name not in accepted]:
        raise CheckpointError(f"unknown hyper-parameter {unknown[0]!r}; expected one of: {', '.join(accepted)}")
    checked = {name: conform(value, accepted[name], name) for name, value in values.items()}
    if "prompts" in accepted and checked.get("prompts") not in available():
        checked["prompts"] = None  # a user's own file, stored in the payload
    return checked


class Bounded(TorchDispatchMode):
    """Refuse to build a network far larger than its weights; layers may still be built and dropped (``depth``)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors = 64 * len(weights) + 20_000
        self.numbers = 32 * sum(value.untyped_storage().nbytes() // 4 for value in weights.values()) + 2**28

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count tensors that are created from sizes."""
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            numbers = [arg for arg in args if isinstance(arg, int | float) and math.isfinite(arg)]
            sizes = [math.prod(arg) for arg in args if isinstance(arg, list | tuple)]
            self.tensors -= 1
            self.numbers -= abs(int(sizes[0] if sizes else max(numbers, default=0)))
            if min(self.tensors, self.numbers) < 0:
                raise CheckpointError("the settings describe a network far larger than the weights")
        return func(*args, **(kwargs or {}))
