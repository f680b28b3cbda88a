"""Methods by name, from the entry-point group ``medvlp.methods``: built-in, baseline and third-party ones."""

import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from medvlp.errors import ConfigError, check_choice

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule

GROUP = "medvlp.methods"


def methods() -> list[EntryPoint]:
    """Return the entry points of all registered methods, by name, without importing them.

    Raises:
        ConfigError: two packages register different methods under one name.
    """
    methods: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = methods.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ConfigError(
                f"two packages register the method {entry.name!r}: {other.value} and {entry.value}; uninstall one"
            )
    return [methods[name] for name in sorted(methods)]


def get_method(name: str) -> "type[PretrainModule]":
    """Import the class of a registered method.

    Raises:
        ConfigError: an unknown name, or an entry point that is not a method of that name.
    """
    from medvlp.methods.base import PretrainModule

    entries = {entry.name: entry for entry in methods()}
    check_choice("method", name, entries or ["none (is medvlp installed?)"])
    where = f"method {name!r}: {entries[name].value}"
    try:
        kind = entries[name].load()
    except Exception as error:  # a third-party module may raise anything while it is imported
        raise ConfigError(f"{where} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, PretrainModule)):
        raise ConfigError(f"{where} is not a PretrainModule")
    if kind.name != name:
        raise ConfigError(f"{where} calls itself {kind.name!r}; make both names equal")
    return kind


def import_all() -> "dict[str, type[PretrainModule]]":
    """Import every registered method, so that the command line knows their class names.

    A method that cannot be imported is skipped with a warning, since one broken plug-in must not stop all others' runs.
    """
    classes = {}
    for entry in methods():
        try:
            classes[entry.name] = get_method(entry.name)
        except ConfigError as error:
            warnings.warn(f"{error}; it is skipped", stacklevel=2)
    return classes
