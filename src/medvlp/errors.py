"""The errors that medvlp raises on purpose: one line each, with file and row where known, and the remedy."""

import errno
import math
from collections.abc import Collection
from functools import partial
from typing import Any

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def os_error_line(error: OSError, folder: str = "unknown path") -> str:
    """Describe an error of the system in one line, which names ``folder`` if the error names no file."""
    path = error.filename2 or error.filename or folder  # of a rename, the target
    if error.errno in FULL_DISK or "No space left" in str(error):
        return f"the disk is full ({path}): free space, then run again"
    if error.errno is None:  # of a library
        return " ".join(str(error).split()) or type(error).__name__
    return f"{path}: {(error.strerror or str(error)).lower()}"


class MedVLPError(Exception):
    """Base of every deliberate error. The command line prints its text alone, without a traceback."""


class DataError(MedVLPError):
    """A corpus is missing, incomplete, or not in the layout that its reader expects."""


class UnreadableItemError(DataError):
    """One image or report cannot be read. ``on_error: skip`` counts and lists such items instead.

    Attributes:
        item_id: identifier of the item in its corpus (never report text).
        reason: what is wrong, in a few words.
    """

    def __init__(self, message: str, *, item_id: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.item_id = item_id
        self.reason = reason or message

    def __reduce__(self) -> tuple[Any, ...]:  # loader workers send the error to the main process
        return partial(type(self), item_id=self.item_id, reason=self.reason), (str(self),)


class TokenizerError(MedVLPError):
    """A tokenizer folder lacks its vocabulary or cannot be read."""


class ConfigError(MedVLPError):
    """Two settings contradict each other, or a value is not allowed."""


class NonFiniteLossError(MedVLPError):
    """A training loss became NaN or infinite."""


class TooManySkippedError(DataError):
    """More than the allowed share of the items could not be read."""


class CheckpointError(MedVLPError):
    """A checkpoint lacks something that loading needs, or does not fit the model."""


class NotSupportedError(MedVLPError):
    """The method does not support this (a masked autoencoder has no text side, for example)."""


def check_choice(what: str, value: Any, accepted: Collection[Any], *, error: type[MedVLPError] = ConfigError) -> None:
    """Raise ``error`` unless the value of a setting, such as "transform", is accepted; it lists what is."""
    if value not in accepted:
        raise error(f"unknown {what} {value!r}; expected one of: {', '.join(map(str, accepted))}")


def check_range(interval: str, **values: Any) -> None:
    """Raise :class:`ConfigError` unless numbers, or lists of them, lie in an interval such as "[0, 1)" or "(0, inf)".

    NaN lies in none; None is skipped.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None:
                continue
            try:
                above = number >= low if interval[0] == "[" else number > low
                inside = above and (number <= high if interval[-1] == "]" else number < high)
            except TypeError:
                inside = False
            if not inside:
                bounds = f"be at least {low:g}" if interval[0] == "[" and high == math.inf else f"lie in {interval}"
                raise ConfigError(f"{name} must {bounds}, not {number!r}")
