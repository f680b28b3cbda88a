"""The errors that medvlp raises on purpose: one line each, with the place and the remedy."""


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
