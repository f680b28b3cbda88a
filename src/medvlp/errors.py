"""The errors that medvlp raises on purpose: one line each, with the place and the remedy."""

import errno
import math
from collections.abc import Collection
from typing import Any

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def os_error_line(error: OSError, folder: str = "unknown path") -> str:
    """Say in one line what the system refused: a full disk, a missing permission, a file in the place of a folder.

    Args:
        error: what was raised.
        folder: what the line names where the error names no file, as those of a full disk.
    """
    path = error.filename2 or error.filename or folder  # of a rename, what it should become
    if error.errno in FULL_DISK or "No space left" in str(error):
        return f"the disk is full ({path}): free space, then run again"
    if error.errno is None:  # of a library, in its own words
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

    def __reduce__(self) -> tuple:  # keeps the keywords when a loader worker sends the error to the main process
        return _rebuild_unreadable, (type(self), str(self), self.item_id, self.reason)


def _rebuild_unreadable(cls: type, message: str, item_id: str, reason: str) -> UnreadableItemError:
    return cls(message, item_id=item_id, reason=reason)


class TokenizerError(MedVLPError):
    """A tokenizer folder lacks its vocabulary or cannot be read."""


class ConfigError(MedVLPError):
    """Two settings contradict each other, or a value is outside what the method allows."""


class NonFiniteLossError(MedVLPError):
    """A training loss became NaN or infinite."""


class TooManySkippedError(DataError):
    """More than the allowed share of the items could not be read."""


class CheckpointError(MedVLPError):
    """A checkpoint lacks something that loading needs, or does not fit the model."""


class NotSupportedError(MedVLPError):
    """The method has no such ability (a masked autoencoder has no text side, for example)."""


def check_choice(what: str, value: Any, accepted: Collection[Any], *, error: type[MedVLPError] = ConfigError) -> None:
    """Raise unless a value is one of those accepted, which the error lists.

    Args:
        what: the setting, as the error calls it: "transform".
        value: what was given.
        accepted: names, or the keys of a mapping.
        error: class of the error.
    """
    if value not in accepted:
        raise error(f"unknown {what} {value!r}; expected one of: {', '.join(map(str, accepted))}")


def check_range(interval: str, **values: Any) -> None:
    """Raise unless numbers lie in an interval; NaN lies in none.

    Args:
        interval: as mathematics writes it: "[0, 1)", "(0, inf)".
        values: numbers, or lists of them, by the names that the error gives them; None is passed over.

    Raises:
        ConfigError: the first value that does not lie in it, or is no number.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None:
                continue
            try:
                inside = low <= number <= high and number != (low if interval[0] == "(" else None)
                inside = inside and number != (high if interval[-1] == ")" else None)
            except TypeError:
                inside = False
            if not inside:
                bounds = f"be at least {low:g}" if interval[0] == "[" and high == math.inf else f"lie in {interval}"
                raise ConfigError(f"{name} must {bounds}, not {number!r}")
