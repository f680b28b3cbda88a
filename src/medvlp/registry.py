"""Finds methods through the entry-point group ``medvlp.methods``: built-in, baseline and outside ones alike."""

import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from medvlp.errors import ConfigError

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule

GROUP = "medvlp.methods"


@dataclass(frozen=True)
class MethodEntry:
    """A registered method, not yet imported.

    Args:
        name: as in ``medvlp list`` and in checkpoints.
        target: "module:Class".
        package: the distribution that registers it.
    """

    name: str
    target: str
    package: str


def _entries() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ConfigError(
                f"two packages register the method {entry.name!r}: {other.value} and {entry.value}; uninstall one"
            )
    return found


def methods() -> list[MethodEntry]:
    """All registered methods, by name, without importing them."""
    return [
        MethodEntry(name, entry.value, entry.dist.name if entry.dist else "")
        for name, entry in sorted(_entries().items())
    ]


def get_method(name: str) -> "type[PretrainModule]":
    """Imports a method.

    Args:
        name: a registered name.

    Returns:
        Its class.

    Raises:
        ConfigError: no such method, or its entry point does not lead to a method of that name.
    """
    entries = _entries()
    if name not in entries:
        raise ConfigError(
            f"no method {name!r}; there are {', '.join(sorted(entries)) or 'none'} (is medvlp installed?)"
        )
    from medvlp.methods.base import PretrainModule

    try:
        found = entries[name].load()
    except Exception as error:  # a stranger's module may raise anything while it is imported
        raise ConfigError(f"method {name!r} ({entries[name].value}) cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, PretrainModule)):
        raise ConfigError(f"method {name!r}: {entries[name].value} is not a PretrainModule")
    if found.name != name:
        raise ConfigError(f"method {name!r}: {entries[name].value} calls itself {found.name!r}; make both names equal")
    return found


def import_all() -> "dict[str, type[PretrainModule]]":
    """Imports every registered method, so that the command line knows their class names.

    A method that cannot be imported is left out with a warning that names it: one broken plug-in must not stop the runs
    of all others.
    """
    found = {}
    for name in _entries():
        try:
            found[name] = get_method(name)
        except ConfigError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=2)
    return found
